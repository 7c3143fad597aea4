"""What the Snakefile asks while it builds the graph: rounds, layers and the paths of both.

Plain Python on the configuration and the layer tables; nothing here imports PyTorch.
"""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from lowrank.errors import UserError, unknown_name
from lowrank.files import read_json
from lowrank.params import Params, PretrainSettings, load_params, parse_params
from lowrank.plan import LayerTable, assign_factorizations, rounds_of

TABLES = Path("data/networks")
FIRST_RUN = Path("build/first_run")


def prefer_this_environment() -> None:
    """Let steps find the `lowrank` of the environment that runs Snakemake, activated or not."""
    programs = str(Path(sys.executable).parent)
    os.environ["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", "")])


class Wildcards(Protocol):
    """What Snakemake hands to an input function; each rule has some of these."""

    model: str
    method: str
    at: str
    round: str


class Workflow:
    """The graph that a configuration describes. Each method is an input or parameter function."""

    def __init__(self, params: Params, tables: Path = TABLES) -> None:
        self.params = params
        self._tables = tables

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> Workflow:
        """Check params.yaml as Snakemake read it. Raises UserError where it is wrong."""
        return cls(parse_params(document))

    @classmethod
    def load(cls) -> Workflow:
        """The graph of the params.yaml in this folder."""
        return cls(load_params())

    def variants(self, names: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
        """Model and method by result name; by default those of the matrix.

        Raises UserError for a name that is neither.
        """
        known = {f"{m}_{k}": (m, k) for m in self.params.checkpoint for k in self.params.methods}
        matrix = self.params.matrix
        names = names or [f"{m}_{k}" for m in matrix.models for k in matrix.methods]
        for name in names:
            if name not in known:
                raise unknown_name("result", name, known, where=f"results/{name}.json")
        return {name: known[name] for name in names}

    def first_run(self) -> str:
        """A file made by the first run in a clone, and an input of every result.

        Results are in Git, so a fresh clone holds them without the models that they describe, and
        Snakemake would find nothing to do. This file is newer than they are.
        """
        if not FIRST_RUN.exists():
            FIRST_RUN.parent.mkdir(parents=True, exist_ok=True)
            FIRST_RUN.touch()
        return str(FIRST_RUN)

    def one_of(self, section: str) -> str:
        """A pattern that matches the names of a section of params.yaml and nothing else."""
        return "|".join(map(re.escape, getattr(self.params, section)))

    @functools.cache  # noqa: B019  (one graph a process)
    def rounds(self, model: str, method: str) -> list[dict[str, str]]:
        """For each round its layers, in network order, with their factorizations."""
        settings = self.params.methods[method]
        assigned = assign_factorizations(self._table(model), settings.factorize.model_dump())
        if not assigned:
            raise UserError(
                f"params.yaml: `methods.{method}.factorize` takes no layer of {model}. Name a "
                "factorization for at least one kind of layer that the network has."
            )
        names = rounds_of(
            list(assigned), kind=settings.schedule.kind, group=settings.schedule.group
        )
        return [{name: assigned[name] for name in layers} for layers in names]

    def dataset(self, wildcards: Wildcards) -> str:
        """The folder of the dataset that a model is trained on."""
        return f"data/datasets/{self.params.checkpoint[wildcards.model].dataset}"

    def weights(self, wildcards: Wildcards) -> str:
        """The file of a model's trained weights. Raises UserError where nothing can provide it."""
        path = self.params.checkpoint[wildcards.model].weights
        made_here = path.startswith("build/pretrain/")
        if not made_here and not Path(path).is_file():
            raise UserError(
                f"{path}: no such checkpoint (`checkpoint.{wildcards.model}.weights` in "
                "params.yaml). Put the trained weights there, name another file, or train them: "
                f"`snakemake --cores 2 build/pretrain/{wildcards.model}.safetensors`."
            )
        return path

    def start(self, wildcards: Wildcards) -> list[str]:
        """The weights that a recipe goes on from; none where it starts at random."""
        return list(filter(None, [self.pretrain(wildcards).start]))

    def pretrain(self, wildcards: Wildcards) -> PretrainSettings:
        """The recipe of a model."""
        if wildcards.model not in self.params.pretrain:
            raise UserError(f"params.yaml: `pretrain` has no recipe for {wildcards.model}.")
        return self.params.pretrain[wildcards.model]

    def state_before(self, wildcards: Wildcards) -> str:
        """The network that a round starts from."""
        number = self._round(wildcards)
        if number == 1:
            return f"build/{wildcards.model}/original/model.safetensors"
        return f"{self._folder(wildcards)}/rounds/{number - 1}/model.safetensors"

    def last_state(self, wildcards: Wildcards) -> str:
        """The network that the last round leaves."""
        last = len(self.rounds(wildcards.model, wildcards.method))
        return f"{self._folder(wildcards)}/rounds/{last}/model.safetensors"

    def layers_json(self, wildcards: Wildcards) -> str:
        """The layers of a round with their factorizations, as JSON."""
        return json.dumps(self._layers(wildcards))

    def factors_folder(self, wildcards: Wildcards) -> str:
        """Where the factors of a round are."""
        return f"{self._folder(wildcards)}/{_at(self._round(wildcards))}/factors"

    def factors(self, wildcards: Wildcards) -> list[str]:
        """The factors of a round, a file for each layer."""
        folder = self.factors_folder(wildcards)
        return [f"{folder}/{layer}.safetensors" for layer in self._layers(wildcards)]

    def plans(self, wildcards: Wildcards) -> list[str]:
        """The plan of every round."""
        folder = self._folder(wildcards)
        return [f"{folder}/{_at(number)}/ranks.json" for number in self._numbers(wildcards)]

    def round_files(self, wildcards: Wildcards) -> list[str]:
        """Accuracy, curve and timing of every round."""
        folder = self._folder(wildcards)
        return [
            f"{folder}/rounds/{number}/{name}.json"
            for number in self._numbers(wildcards)
            for name in ("metrics", "curve", "timing")
        ]

    def exports(self, wildcards: Wildcards) -> list[str]:
        """The reports of both exports: original, compressed."""
        return [
            f"build/{wildcards.model}/original/export.json",
            f"{self._folder(wildcards)}/export.json",
        ]

    def benchmarks(self, wildcards: Wildcards) -> list[str]:
        """The measurements on every device."""
        folder = f"{self._folder(wildcards)}/benchmark"
        return [f"{folder}/{device}.json" for device in self.params.matrix.devices]

    @property
    def unknown_variant(self) -> str:
        """A pattern for every `{variant}` that is not a known `{model}_{method}`."""
        known = f"(?:{self.one_of('checkpoint')})_(?:{self.one_of('methods')})"
        return rf"(?!(?:{known})\.json$)[^/]+"

    def refuse(self, wildcards: Any) -> list[str]:
        """Raise UserError for a result whose model or method is not in params.yaml."""
        return list(self.variants([wildcards.variant]))

    def _layers(self, wildcards: Wildcards) -> dict[str, str]:
        rounds = self.rounds(wildcards.model, wildcards.method)
        number = self._round(wildcards)
        if number > len(rounds):
            raise UserError(
                f"{wildcards.model}_{wildcards.method} has {len(rounds)} rounds; "
                f"there is no round {number}."
            )
        return rounds[number - 1]

    def _numbers(self, wildcards: Wildcards) -> range:
        return range(1, len(self.rounds(wildcards.model, wildcards.method)) + 1)

    def _table(self, model: str) -> LayerTable:
        path = self._tables / f"{model}.json"
        if not path.exists():
            # In a process of its own: the graph must not wait for PyTorch every time.
            command = [sys.executable, "-m", "lowrank.cli", "inspect", model, "--output", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise UserError(done.stderr.strip().splitlines()[-1])
        return LayerTable.from_json(read_json(path))

    @staticmethod
    def _folder(wildcards: Wildcards) -> str:
        return f"build/{wildcards.model}/{wildcards.method}"

    @staticmethod
    def _round(wildcards: Wildcards) -> int:
        if "at" in wildcards.keys():  # noqa: SIM118  (Snakemake's wildcards are no mapping)
            return 1 if wildcards.at == "first" else int(wildcards.at.removeprefix("rounds/"))
        return int(wildcards.round)


def _at(number: int) -> str:
    return "first" if number == 1 else f"rounds/{number}"
