"""The graph that a configuration describes: variants, rounds and their paths.

Plain Python on the configuration and the layer tables; nothing here imports PyTorch.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lowrank.config.document import Document, reconciled
from lowrank.config.network_source import NetworkSource
from lowrank.config.params import Params
from lowrank.config.reading import load_params, parse_params
from lowrank.core.layers import LayerTable
from lowrank.core.rounds import assign_factorizations, fits, rounds_of
from lowrank.errors import UserError, unknown_name
from lowrank.graph.code_digests import digest_of_step
from lowrank.graph.compress import CompressRules
from lowrank.graph.deliver import DeliverRules
from lowrank.graph.dvc_stages import (
    remove_outputs,
    require_known_folders,
    running_stage,
)
from lowrank.graph.layer_tables import LayerTables
from lowrank.graph.names import (
    FIRST_RUN,
    LAYER_NAME,
    TABLES,
    Wildcards,
)
from lowrank.graph.networks import NetworkRules
from lowrank.graph.report import ReportRules
from lowrank.graph.search import SearchRules
from lowrank.graph.step_names import STEPS
from lowrank.graph.studies import StudyRules


def prefer_this_environment() -> None:
    """Let steps find the `lowrank` of the environment that runs Snakemake, activated or not."""
    programs = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", "")])


class Graph:
    """The graph of a configuration; for each file of workflow/rules, what its rules ask."""

    def __init__(
        self,
        params: Params,
        tables: Path = TABLES,
        document: Mapping[str, Any] | None = None,
    ) -> None:
        self.params = params
        self.document = document or {}
        self.tables = LayerTables(self, tables)
        self.networks = NetworkRules(self)
        self.compress = CompressRules(self)
        self.search = SearchRules(self)
        self.deliver = DeliverRules(self)
        self.report = ReportRules(self)
        self.studies = StudyRules(self)

    @classmethod
    def from_document(cls, document: Mapping[str, Any], files: Sequence[str | Path] = ()) -> Graph:
        """Check params.yaml as Snakemake read it, with what its command line replaced.

        Values that Snakemake reads in another way than DVC, and lines, are those of the files,
        where they are given, params.yaml first. Raises UserError where it is wrong.
        """
        read = reconciled(document, files) if files else Document(document)
        return cls(parse_params(read), document=read.entries)

    @classmethod
    def load(cls) -> Graph:
        """The graph of the params.yaml in this folder."""
        return cls(load_params())

    def variants(self, names: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
        """Model and method by result name; by default those of the matrix.

        Raises UserError for a name that is neither.
        """
        known, matrix = self.known_variants, self.params.matrix
        names = names or [f"{m}_{k}" for m in matrix.models for k in matrix.methods]
        for name in names:
            if name not in known:
                raise unknown_name("result", name, known, where=f"results/{name}.json")
        return {name: known[name] for name in names}

    @property
    def known_variants(self) -> dict[str, tuple[str, str]]:
        """Model and method of every result that could be asked for, by its name."""
        return {f"{m}_{k}": (m, k) for m in self.params.checkpoint for k in self.params.methods}

    def first_run(self) -> str:
        """A file made by the first run in a clone, and an input of every result.

        Results are in Git, so a fresh clone holds them without the models that they describe, and
        Snakemake would find nothing to do. This file is newer than they are.
        """
        if not FIRST_RUN.exists():
            FIRST_RUN.parent.mkdir(parents=True, exist_ok=True)
            FIRST_RUN.touch()
        return str(FIRST_RUN)

    def begin_stage(self) -> None:
        """Inside `dvc repro`: remove what the stale stage made. Call it under the run's lock."""
        if stage := running_stage():
            require_known_folders(stage, self.params)
            remove_outputs(stage, self.params)

    @staticmethod
    def code(*steps: str) -> str:
        """What the code of some steps comes to, by default of all.

        A rule's jobs are stale where it has changed.
        """
        return " ".join(map(digest_of_step, steps or STEPS))

    @property
    def searching(self) -> str:
        """A pattern that matches the methods that find ranks by trials and nothing else."""
        return "|".join(map(re.escape, self.params.searching)) or "none"

    @property
    def not_searching(self) -> str:
        """A pattern that matches all other methods, trials among them, and nothing else."""
        searching = self.params.searching
        return "|".join(re.escape(name) for name in self.params.methods if name not in searching)

    def one_of(self, section: str) -> str:
        """A pattern that matches the names of a section of params.yaml and nothing else."""
        return "|".join(map(re.escape, getattr(self.params, section)))

    @functools.cache  # noqa: B019  (one graph a process)
    def rounds(self, model: str, method: str) -> list[dict[str, str]]:
        """For each round its layers, in the order of the schedule, with their factorizations.

        A method that names no factorization at all has one round without layers: the network is
        fine-tuned as it is, for comparison. If it is not fine-tuned either, there is no round, and
        the original is what is exported and quantized.
        """
        settings = self.params.methods[method]
        table, by_kind = self.tables.read(model), settings.factorize.by_kind()
        self._check_names(model, method, table)
        assigned = assign_factorizations(
            table, by_kind, include=settings.factorize.include, exclude=settings.factorize.exclude
        )
        if not assigned and any(by_kind.values()):
            raise UserError(
                f"params.yaml: `methods.{method}.factorize` takes no layer of {model}. Name a "
                "factorization for at least one kind of layer that the network has, and let "
                "`include` and `exclude` leave some."
            )
        if not assigned:
            return [{}] if self.params.finetune_of(model, method).trains else []
        taken = [layer for layer in table.layers if layer.name in assigned]
        _refuse_unfit_names([layer.name for layer in taken], model)
        schedule = settings.schedule
        rounds = rounds_of(
            taken,
            kind=schedule.kind,
            group=schedule.group,
            order=schedule.order,
            stages=schedule.stages,
        )
        return [{name: assigned[name] for name in layers} for layers in rounds]

    def ranks_json(self, wildcards: Wildcards) -> str:
        """How the ranks of a variant are chosen, as JSON."""
        return self.params.ranks_of(wildcards.model, wildcards.method).model_dump_json()

    def dataset(self, wildcards: Wildcards) -> str:
        """The folder of the dataset that a model is trained on."""
        return f"data/datasets/{self.params.checkpoint[wildcards.model].dataset}"

    def network_json(self, wildcards: Wildcards) -> str:
        """How a model's network is built, as JSON."""
        return json.dumps(self.source(wildcards.model).to_json())

    def source(self, model: str) -> NetworkSource:
        return self.params.checkpoint[model].named(model)

    def last_state(self, wildcards: Wildcards) -> str:
        """The network that the last round leaves; the original where there is no round."""
        last = len(self.rounds(wildcards.model, wildcards.method))
        if not last:
            return f"build/{wildcards.model}/original/model.safetensors"
        return f"{self.folder(wildcards)}/rounds/{last}/model.safetensors"

    def layers_json(self, wildcards: Wildcards) -> str:
        """The layers of a round with their factorizations, as JSON."""
        return json.dumps(self.layers(wildcards))

    def quantize(self, wildcards: Wildcards) -> str:
        """How a variant is quantised; empty where it is not."""
        return self.params.methods[wildcards.method].quantize or ""

    @property
    def unknown_variant(self) -> str:
        """A pattern for every `{variant}` that is not a known `{model}_{method}`."""
        known = f"(?:{self.one_of('checkpoint')})_(?:{self.one_of('methods')})"
        return rf"(?!(?:{known})\.json$)[^/]+"

    def refuse(self, wildcards: Any) -> list[str]:
        """Raise UserError for a result whose model or method is not in params.yaml."""
        return list(self.variants([wildcards.variant]))

    def asking_method(self, method: str) -> str:
        """The method that a trial belongs to, whose moments and latencies it shares; or itself."""
        trial = self.params.trial_of(method)
        return trial[0] if trial else method

    def trial_numbers(self, wildcards: Wildcards) -> range:
        return range(1, self.params.methods[wildcards.method].ranks.search.trials + 1)

    def layers(self, wildcards: Wildcards) -> dict[str, str]:
        rounds = self.rounds(wildcards.model, wildcards.method)
        number = self.round_number(wildcards)
        if number == 1 and not rounds:
            return {}
        if number > len(rounds):
            raise UserError(
                f"{wildcards.model}_{wildcards.method} has {len(rounds)} rounds; "
                f"there is no round {number}."
            )
        return rounds[number - 1]

    def keeps_outputs(self, wildcards: Wildcards) -> bool:
        return self.params.methods[wildcards.method].factorize.norm == "activation"

    def is_sequential(self, wildcards: Wildcards) -> bool:
        return self.params.methods[wildcards.method].factorize.sequential

    def shares_out(self, wildcards: Wildcards) -> bool:
        # A control, which factors nothing, has no ranks to share out.
        factors = any(self.params.methods[wildcards.method].factorize.by_kind().values())
        rule = self.params.ranks_of(wildcards.model, wildcards.method)
        return factors and rule.looks_at_all_layers

    def measures(self, wildcards: Wildcards) -> bool:
        return self.round_number(wildcards) == 1 and self.shares_out(wildcards)

    def _check_names(self, model: str, method: str, table: LayerTable) -> None:
        """Raise UserError for a layer that the method names and the network has not."""
        known = [layer.name for layer in table.layers]
        settings = self.params.methods[method]
        order = settings.schedule.order
        named = {
            "ranks.table": self.params.ranks_of(model, method).table,
            "schedule.order": () if isinstance(order, str) else order,
        }
        for place, names in named.items():
            for name in names:
                if name not in known:
                    where = f"params.yaml: `methods.{method}.{place}`"
                    raise unknown_name(f"layer of {model}", name, known, where=where)
        patterns = {"include": settings.factorize.include, "exclude": settings.factorize.exclude}
        for place, each in patterns.items():
            for pattern in each:
                if not any(fits(name, [pattern]) for name in known):
                    raise UserError(
                        f"params.yaml: `methods.{method}.factorize.{place}`: no layer of {model} "
                        f"is named like '{pattern}'. Its layers: {', '.join(known)}."
                    )

    def round_numbers(self, wildcards: Wildcards) -> range:
        return range(1, len(self.rounds(wildcards.model, wildcards.method)) + 1)

    @staticmethod
    def folder(wildcards: Wildcards) -> str:
        return f"build/{wildcards.model}/{wildcards.method}"

    @staticmethod
    def round_number(wildcards: Wildcards) -> int:
        if "at" in wildcards.keys():  # noqa: SIM118  (Snakemake's wildcards are no mapping)
            return 1 if wildcards.at == "first" else int(wildcards.at.removeprefix("rounds/"))
        return int(wildcards.round)


def _refuse_unfit_names(layers: Sequence[str], model: str) -> None:
    """Raise UserError for a layer whose name cannot be a file's."""
    for name in layers:
        if not re.fullmatch(LAYER_NAME, name):
            raise UserError(
                f"{model}: its layer {name!r} cannot be factored, for its factors get a file of "
                "that name: expected letters, digits, `_`, `-` and `.`. Rename it in the network, "
                "or name it under `exclude` of the method's `factorize`."
            )
