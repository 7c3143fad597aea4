"""The graph that a configuration describes: variants, rounds and their paths.

The graph is computed from the configuration and the layer tables, without PyTorch.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

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
    require_known_data,
    running_stage,
)
from lowrank.graph.layer_tables import LayerTables
from lowrank.graph.names import (
    FIRST_RUN,
    LAYER_NAME,
    TABLES,
    Wildcards,
    folder_of_trial,
    method_of,
)
from lowrank.graph.networks import NetworkRules
from lowrank.graph.report import ReportRules
from lowrank.graph.resources import ResourceRules
from lowrank.graph.rules import with_signatures
from lowrank.graph.search import SearchRules
from lowrank.graph.step_names import STEPS
from lowrank.graph.studies import StudyRules
from lowrank.ranks.rule import rule_of
from lowrank.settings.document import Document, reconciled
from lowrank.tasks import get_task


def prefer_this_environment() -> None:
    """Put the environment that runs Snakemake first on PATH, so that steps use its `lowrank`."""
    programs = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", "")])


@with_signatures
class Graph:
    """The graph of a configuration, with an attribute for each file in workflow/rules.

    Parameters
    ----------
    params
        The configuration, checked.
    tables
        The folder of the layer tables.
    document
        The configuration as the engine read it.
    prefix
        What Snakemake puts before the paths of a module's rules, such as `sub/`. Answers are paths
        without it, because Snakemake adds it to them.
    shipped
        Returns the path of a file that comes with the workflow, such as the weights of a shipped
        network. By default these files are in this folder.
    on_cluster
        Whether other machines than this one run the jobs.
    stored_at
        Address of the storage that keeps the files, such as `s3://bucket/study`. Empty if they are
        in this folder.
    """

    def __init__(
        self,
        params: Params,
        tables: Path = TABLES,
        document: Mapping[str, Any] | None = None,
        *,
        prefix: str = "",
        shipped: Callable[[str], str] | None = None,
        on_cluster: bool = False,
        stored_at: str = "",
    ) -> None:
        self.params, self.on_cluster, self.stored_at = params, on_cluster, stored_at
        self.prefix, self.shipped = prefix, shipped
        self.document = document or {}
        self.tables = LayerTables(self, Path(prefix, tables))
        self.networks = NetworkRules(self)
        self.compress = CompressRules(self)
        self.search = SearchRules(self)
        self.deliver = DeliverRules(self)
        self.report = ReportRules(self)
        self.studies = StudyRules(self)
        self.resources = ResourceRules(self)

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], files: Sequence[str | Path] = (), **options: Any
    ) -> Graph:
        """Create a graph from params.yaml as Snakemake read it, with overrides applied.

        Snakemake reads some values differently from DVC. If `files` are given, params.yaml first,
        such values and the line numbers in messages are taken from them. The options are those of
        the class. Raises UserError for an invalid configuration.
        """
        read = reconciled(document, files) if files else Document(document)
        return cls(parse_params(read), document=read.entries, **options)

    @classmethod
    def load(cls) -> Graph:
        """Create the graph of the params.yaml in this folder."""
        return cls(load_params())

    def variants(self, names: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
        """Return model and method by the name of a result, by default for the matrix.

        Raises UserError for an unknown name.
        """
        known, matrix = self.known_variants, self.params.matrix
        names = names or [f"{m}_{k}" for m in matrix.models for k in matrix.methods]
        for name in names:
            if name not in known:
                raise unknown_name("result", name, known, where=f"results/{name}.json")
        return {name: known[name] for name in names}

    @property
    def known_variants(self) -> dict[str, tuple[str, str]]:
        """Model and method of every possible result, by its name."""
        return {f"{m}_{k}": (m, k) for m in self.params.checkpoint for k in self.params.methods}

    def first_run(self) -> str | list[str]:
        """Create a file in the first run in a clone, and return its path, an input of all results.

        A fresh clone contains the results but not their models, so Snakemake would have nothing to
        do. This file is newer than the results, so they are made again. Storage has both or none,
        so nothing is returned with one.
        """
        if self.stored_at:
            return []
        path = Path(self.prefix, FIRST_RUN)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return str(path)

    def begin_stage(self) -> None:
        """Remove the outputs of the stale stage inside `dvc repro`. The caller holds the lock."""
        if stage := running_stage():
            require_known_data(stage, self.params)
            remove_outputs(stage, self.params)

    @staticmethod
    def code(*steps: str) -> str:
        """Return the digests of the code of some steps, by default of all.

        The jobs of a rule are stale if the digests have changed.
        """
        return " ".join(map(digest_of_step, steps or STEPS))

    @property
    def searching(self) -> str:
        """Pattern that matches only the methods that search for ranks by trials."""
        return "|".join(map(re.escape, self.params.searching)) or "none"

    @property
    def not_searching(self) -> str:
        """Pattern that matches only the folders of methods that do not search, and of trials."""
        searching = self.params.searching
        names = (name for name in self.params.methods if name not in searching)
        return "|".join(re.escape(self.folder_name(name)) for name in names)

    @property
    def method_folders(self) -> str:
        """Pattern that matches only the folders of methods and trials."""
        return "|".join(re.escape(self.folder_name(name)) for name in self.params.methods)

    def names_pattern(self, section: str) -> str:
        """Return a pattern that matches only the names in a section of params.yaml."""
        return "|".join(map(re.escape, getattr(self.params, section)))

    @functools.cache  # noqa: B019  (There is one graph per process.)
    def rounds(self, model: str, method: str) -> list[dict[str, str]]:
        """Return the factorization by layer for each round, in the order of the schedule.

        A method without factorizations has one round without layers, in which the unchanged network
        is fine-tuned for comparison. Without fine-tuning it has no rounds, and the original is
        exported and quantized. Raises UserError for unknown layers, and for a method that names
        factorizations but selects no layer.
        """
        settings = self.params.methods[method]
        table, by_kind = self.tables.read(model), settings.factorize.by_kind()
        self._check_names(model, method, table)
        assigned = assign_factorizations(
            table, by_kind, include=settings.factorize.include, exclude=settings.factorize.exclude
        )
        if not assigned and any(by_kind.values()):
            raise UserError(
                f"params.yaml: `methods.{method}.factorize` selects no layer of {model}. Name a "
                "factorization for at least one kind of layer in the network, and check that "
                "`include` and `exclude` do not rule out all layers."
            )
        if not assigned:
            return [{}] if self.params.finetune_of(model, method).trains else []
        selected = [layer for layer in table.layers if layer.name in assigned]
        _require_file_names([layer.name for layer in selected], model)
        schedule = settings.schedule
        rounds = rounds_of(
            selected,
            kind=schedule.kind,
            group=schedule.group,
            order=schedule.order,
            stages=schedule.stages,
        )
        return [{name: assigned[name] for name in layers} for layers in rounds]

    def ranks_json(self, wildcards: Wildcards) -> str:
        """Return the settings of a variant's rank rule, as JSON."""
        return self.params.ranks_of(wildcards.model, method_of(wildcards)).model_dump_json()

    def dataset(self, wildcards: Wildcards) -> str:
        """Return the folder of the dataset that a model is trained on."""
        return f"data/datasets/{self.params.checkpoint[wildcards.model].dataset}"

    def network_json(self, wildcards: Wildcards) -> str:
        """Return the description of how a model's network is built, as JSON."""
        return json.dumps(self.source(wildcards.model).to_json())

    def task(self, wildcards: Wildcards) -> str:
        """Return the task of a model's network: its name, or the user's metric as JSON."""
        return self.task_of(wildcards.model)

    def task_of(self, model: str) -> str:
        """Return the task of a network: its name, or the user's metric as JSON."""
        settings = self.params.checkpoint[model]
        if settings.metric is None:
            return settings.task
        return json.dumps(settings.metric.to_document(self.tables.metric_code(model)))

    def reference(self, wildcards: Wildcards) -> list[str]:
        """Return the original network, if the task of a network compares with it; else none."""
        if not get_task(self.task(wildcards)).compares_with_original:
            return []
        return [f"build/{wildcards.model}/original/model.safetensors"]

    def source(self, model: str) -> NetworkSource:
        """Return the description of how a model's network is built."""
        return self.params.checkpoint[model].named(model)

    def last_state(self, wildcards: Wildcards) -> str:
        """Return the network after the last round, or the original if there are no rounds."""
        last = len(self.rounds(wildcards.model, method_of(wildcards)))
        if not last:
            return f"build/{wildcards.model}/original/model.safetensors"
        return f"{self.folder(wildcards)}/rounds/{last}/model.safetensors"

    def layers_json(self, wildcards: Wildcards) -> str:
        """Return the layers of a round with their factorizations, as JSON."""
        return json.dumps(self.layers(wildcards))

    def quantize(self, wildcards: Wildcards) -> str:
        """Return the quantization of a variant; empty without one."""
        return self.params.methods[method_of(wildcards)].quantize or ""

    @property
    def unknown_variant(self) -> str:
        """Pattern that matches every `{variant}` that is not a known `{model}_{method}`."""
        known = f"(?:{self.names_pattern('checkpoint')})_(?:{self.names_pattern('methods')})"
        return rf"(?!(?:{known})\.json$)[^/]+"

    def refuse(self, wildcards: Any) -> list[str]:
        """Raise UserError for a result whose model or method is not in params.yaml."""
        return list(self.variants([wildcards.variant]))

    def searching_method(self, method: str) -> str:
        """Return the searching method of a trial, or the method itself if it is no trial.

        A trial shares the moments and latencies of its searching method.
        """
        trial = self.params.trial_of(method)
        return trial[0] if trial else method

    def trial_numbers(self, wildcards: Wildcards) -> range:
        """Return the numbers of the trials of a search."""
        return range(1, self.params.methods[method_of(wildcards)].ranks.trials + 1)

    def layers(self, wildcards: Wildcards) -> dict[str, str]:
        """Return the layers of a round with their factorizations.

        Raises UserError if the schedule does not have this round.
        """
        rounds = self.rounds(wildcards.model, method_of(wildcards))
        number = self.round_number(wildcards)
        if number == 1 and not rounds:
            return {}
        if number > len(rounds):
            raise UserError(
                f"{wildcards.model}_{method_of(wildcards)} has {len(rounds)} rounds; "
                f"there is no round {number}."
            )
        return rounds[number - 1]

    def keeps_outputs(self, wildcards: Wildcards) -> bool:
        """Return whether decompositions minimize the error of outputs, `norm: activation`."""
        return self.params.methods[method_of(wildcards)].factorize.norm == "activation"

    def is_sequential(self, wildcards: Wildcards) -> bool:
        """Return whether the layers of a round are decomposed one after the other."""
        return self.params.methods[method_of(wildcards)].factorize.sequential

    def chooses_ranks_together(self, wildcards: Wildcards) -> bool:
        """Return whether the rank rule chooses the ranks of all layers together."""
        # A control has no factorizations and so no ranks.
        is_factored = any(self.params.methods[method_of(wildcards)].factorize.by_kind().values())
        settings = self.params.ranks_of(wildcards.model, method_of(wildcards))
        return is_factored and rule_of(settings).looks_at_all_layers

    def measures(self, wildcards: Wildcards) -> bool:
        """Return whether this is the first round and its rank rule measures all layers."""
        return self.round_number(wildcards) == 1 and self.chooses_ranks_together(wildcards)

    def _check_names(self, model: str, method: str, table: LayerTable) -> None:
        """Raise UserError for a layer that the method names but the network does not have."""
        known = [layer.name for layer in table.layers]
        settings = self.params.methods[method]
        order = settings.schedule.order
        names_by_setting = {
            "ranks.table": self.params.ranks_of(model, method).named_layers,
            "schedule.order": () if isinstance(order, str) else order,
        }
        for setting, names in names_by_setting.items():
            for name in names:
                if name not in known:
                    where = f"params.yaml: `methods.{method}.{setting}`"
                    raise unknown_name(f"layer of {model}", name, known, where=where)
        patterns_by_setting = {
            "include": settings.factorize.include,
            "exclude": settings.factorize.exclude,
        }
        for setting, patterns in patterns_by_setting.items():
            for pattern in patterns:
                if not any(fits(name, [pattern]) for name in known):
                    raise UserError(
                        f"params.yaml: `methods.{method}.factorize.{setting}`: no layer of {model} "
                        f"matches '{pattern}'. Its layers: {', '.join(known)}. Correct the pattern."
                    )

    def round_numbers(self, wildcards: Wildcards) -> range:
        """Return the numbers of a variant's rounds."""
        return range(1, len(self.rounds(wildcards.model, method_of(wildcards))) + 1)

    def folder(self, wildcards: Wildcards) -> str:
        """Return the folder of a variant."""
        return f"build/{wildcards.model}/{self.folder_name(method_of(wildcards))}"

    @functools.cache  # noqa: B019  (There is one graph per process.)
    def folder_name(self, method: str) -> str:
        """Return the folder of a method, relative to the folder of a network."""
        trial = self.params.trial_of(method)
        return folder_of_trial(*trial) if trial else method

    @staticmethod
    def round_number(wildcards: Wildcards) -> int:
        """Return the number of a round, from its place `{at}` or its number `{round}`."""
        if "at" in wildcards.keys():  # noqa: SIM118  (Snakemake's wildcards are not a mapping.)
            return 1 if wildcards.at == "first" else int(wildcards.at.removeprefix("rounds/"))
        return int(wildcards.round)


def _require_file_names(layers: Sequence[str], model: str) -> None:
    """Raise UserError for a layer whose name cannot be the name of a file."""
    for name in layers:
        if not re.fullmatch(LAYER_NAME, name):
            raise UserError(
                f"{model}: its layer {name!r} cannot be factored, because its name is also the "
                "name of the file of its factors. Expected: letters, digits, `_`, `-` and `.`. "
                "Rename the layer in the network, or add it to `exclude` of the method's "
                "`factorize`."
            )
