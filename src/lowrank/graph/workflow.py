"""What the Snakefile asks while it builds the graph: rounds, layers and the paths of both.

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
from typing import Any, Protocol

import yaml

from lowrank.config.dataset import DatasetSettings
from lowrank.config.document import Document, reconciled
from lowrank.config.finetune import RoundSettings
from lowrank.config.network_source import NetworkSource
from lowrank.config.params import Params, trial_name
from lowrank.config.reading import load_params, parse_params
from lowrank.config.training import PretrainSettings
from lowrank.core.layers import LayerTable
from lowrank.core.rounds import assign_factorizations, fits, rounds_of
from lowrank.errors import UserError, unknown_name
from lowrank.files import read_json, sha256_of, write_text
from lowrank.graph.code_digests import digest_of_module, digest_of_step, files_of_module
from lowrank.graph.configuration import configuration_of
from lowrank.graph.dvc_stages import (
    remove_outputs,
    require_known_folders,
    require_watched,
    running_stage,
)
from lowrank.graph.folder_digests import digest_of_folder
from lowrank.graph.processes import run_step
from lowrank.graph.step_names import STEPS

TABLES = Path("data/networks")
# Of a layer in its network, `features.conv1_1`; a file of factors has this name.
LAYER_NAME = r"[\w.-]+"
FIRST_RUN = Path("build/first_run")
# What code of lowrank's made a table, which the table does not say: it is in Git, and would change
# with every change of that code.
TABLE_CODE = Path("build/table_code")
RESULTS = Path("results")

# What a search takes over from its best trial.
SETTLED = (
    "first/ranks.json",
    *(f"rounds/1/{name}" for name in ("model.safetensors", "metrics.json", "curve.json")),
    "rounds/1/timing.json",
)

# Trained weights that others publish, for networks that lowrank defines and no registry offers.
WEIGHTS_ELSEWHERE = {
    "alexnet": "bvlc_alexnet.caffemodel from the BVLC model zoo of Caffe",
    "googlenet": "bvlc_googlenet.caffemodel from the BVLC model zoo of Caffe",
    "vgg_s": "VGG_CNN_S.caffemodel from the Visual Geometry Group, Oxford (deep_eval)",
    "vgg16_imagenet": "VGG_ILSVRC_16_layers.caffemodel from the Visual Geometry Group, Oxford",
    "squeezenet": "squeezenet_v1.1.caffemodel from the authors' repository (SqueezeNet_v1.1)",
}


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
    study: str
    number: str
    layer: str
    device: str


class Workflow:
    """The graph that a configuration describes. Each method is an input or parameter function."""

    def __init__(
        self,
        params: Params,
        tables: Path = TABLES,
        document: Mapping[str, Any] | None = None,
    ) -> None:
        self.params = params
        self._document = document or {}
        self._tables = tables

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], files: Sequence[str | Path] = ()
    ) -> Workflow:
        """Check params.yaml as Snakemake read it, with what its command line replaced.

        Values that Snakemake reads in another way than DVC, and lines, are those of the files,
        where they are given, params.yaml first. Raises UserError where it is wrong.
        """
        read = reconciled(document, files) if files else Document(document)
        return cls(parse_params(read), document=read.entries)

    @classmethod
    def load(cls) -> Workflow:
        """The graph of the params.yaml in this folder."""
        return cls(load_params())

    def variants(self, names: Sequence[str] = ()) -> dict[str, tuple[str, str]]:
        """Model and method by result name; by default those of the matrix.

        Raises UserError for a name that is neither.
        """
        known, matrix = self._known, self.params.matrix
        names = names or [f"{m}_{k}" for m in matrix.models for k in matrix.methods]
        for name in names:
            if name not in known:
                raise unknown_name("result", name, known, where=f"results/{name}.json")
        return {name: known[name] for name in names}

    @property
    def _known(self) -> dict[str, tuple[str, str]]:
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

    def network_code(self, model: str) -> str:
        """Digest of the user's code that builds a network; what lowrank has is the steps' code."""
        factory = self._source(model).factory
        return digest_of_module(factory.partition(":")[0]) if factory else "lowrank"

    def network_codes_json(self, _: Any = None) -> str:
        """Return the code digest of every network, as JSON."""
        return json.dumps(self.network_codes())

    def network_codes(self) -> dict[str, str]:
        """Return the code digest of every network.

        Raises UserError for code that DVC does not watch.
        """
        for model in self.params.checkpoint:
            factory = self._source(model).factory
            if factory:
                files = files_of_module(factory.partition(":")[0])
                require_watched(files, "code", f"`checkpoint.{model}.factory` ({factory})")
        return {model: self.network_code(model) for model in self.params.checkpoint}

    def image_files(self, wildcards: Any) -> str:
        """Digests of the image folders of a dataset; empty for one that is known by its contents.

        CIFAR-10 and Fashion-MNIST are verified against the contents that they must have, so it
        does not matter which file they come from.
        """
        settings = self.params.dataset[wildcards.dataset]
        folders = filter(None, [settings.train, settings.validation])
        return " ".join(map(digest_of_folder, folders))

    def validation_files(self, wildcards: Wildcards) -> str:
        """Digest of a network's own folder of validation images; empty where it has none."""
        folder = self.params.checkpoint[wildcards.model].validation.folder
        return digest_of_folder(folder) if folder else ""

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
        table, by_kind = self._table(model), settings.factorize.by_kind()
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

    def all_layers_json(self, wildcards: Wildcards) -> str:
        """The layers of every round with their factorizations, as JSON, where the rule needs them.

        Empty for a rule that looks at one layer at a time.
        """
        if not self._shares_out(wildcards):
            return "{}"
        rounds = self.rounds(wildcards.model, wildcards.method)
        return json.dumps({name: each for layers in rounds for name, each in layers.items()})

    def alternatives_json(self, wildcards: Wildcards) -> str:
        """Further factorizations that a rule may give to a layer, as JSON."""
        return json.dumps(self.params.methods[wildcards.method].factorize.alternatives)

    def measured_on(self, wildcards: Wildcards) -> list[str]:
        """The dataset, on which rules measure losses and every choice of ranks is tried.

        None for a round that decomposes nothing.
        """
        return [self.dataset(wildcards)] if self._layers(wildcards) else []

    def measured_splits(self, wildcards: Wildcards) -> list[str]:
        """Which of its images those are; else none."""
        return [_splits(wildcards)] if self._layers(wildcards) else []

    def measured_moments(self, wildcards: Wildcards) -> list[str]:
        """The moments that layers are tried with there, for `norm: activation`; else none."""
        tries = self._layers(wildcards) and self._predicts(wildcards)
        return self.moments(wildcards) if tries or self._measures(wildcards) else []

    def latencies(self, wildcards: Wildcards) -> list[str]:
        """What layers take on each device whose latency the target bounds, by the draft; else none.

        Raises UserError for a device that is not known.
        """
        folder = f"{self._folder(wildcards)}/first"
        return [f"{folder}/latencies/{device}.json" for device in self._devices(wildcards)]

    def latencies_of_layers(self, wildcards: Wildcards) -> list[str]:
        """The same before the draft: what trials of a search share."""
        folder = f"build/{wildcards.model}/{self._asking(wildcards.method)}"
        return [f"{folder}/latencies/{device}.json" for device in self._devices(wildcards)]

    def latencies_of_device(self, wildcards: Wildcards) -> str:
        """The same of `{device}`."""
        folder = f"build/{wildcards.model}/{self._asking(wildcards.method)}"
        return f"{folder}/latencies/{wildcards.device}.json"

    def _devices(self, wildcards: Wildcards) -> list[str]:
        devices = self.params.ranks_of(wildcards.model, wildcards.method).devices
        for device in devices:
            if device not in self.params.benchmark:
                where = f"params.yaml: `methods.{wildcards.method}.ranks.target.latency_ms`"
                raise unknown_name("device", device, self.params.benchmark, where=where)
        return list(devices) if self._measures(wildcards) else []

    def measured_calibration_json(self, wildcards: Wildcards) -> str:
        """How those are made, as JSON; empty where there are none."""
        return self.calibration_json(wildcards) if self.measured_moments(wildcards) else "{}"

    def predict(self, wildcards: Wildcards) -> str:
        """Whether the chosen ranks are tried at once; those of `sequential` follow one another."""
        return "--predict" if self._predicts(wildcards) else "--no-predict"

    def largest_drop(self, wildcards: Wildcards) -> float:
        """What the factors of a round may cost before fine-tuning, to be measured there; 1: any.

        For what `select_ranks` does not try, or not if it takes long. A trial may lose anything.
        """
        from lowrank.factorize import get_factorization

        methods = map(get_factorization, self._layers(wildcards).values())
        tried = self._predicts(wildcards) and all(each.is_closed_form for each in methods)
        if tried or self.params.trial_of(wildcards.method):
            return 1.0
        return self.params.ranks_of(wildcards.model, wildcards.method).largest_drop

    def _predicts(self, wildcards: Wildcards) -> bool:
        return not self._is_sequential(wildcards)

    def calibrated_json(self, wildcards: Wildcards) -> str:
        """The layers whose moments a round needs, as JSON: its own, or those of every round."""
        if self._measures(wildcards):
            return self.all_layers_json(wildcards)
        return self.layers_json(wildcards)

    def aim(self, wildcards: Wildcards) -> list[str]:
        """What a trial may cost; none for what is no trial."""
        trial = self.params.trial_of(wildcards.method)
        if not trial:
            return []
        method, number = trial
        return [f"build/{wildcards.model}/{method}/search/{number}.json"]

    def earlier_trials(self, wildcards: Wildcards) -> list[str]:
        """What the trials before `{number}` of a search lost."""
        folder = f"{self._folder(wildcards)}/search"
        return [f"{folder}/{number}_found.json" for number in range(1, int(wildcards.number))]

    def earlier_plans(self, wildcards: Wildcards) -> list[str]:
        """The plans of the trials before this one, whose losses are known; none for no trial."""
        trial = self.params.trial_of(wildcards.method)
        if not trial:
            return []
        method, number = trial
        return [
            f"build/{wildcards.model}/{trial_name(method, earlier)}/first/ranks.json"
            for earlier in range(1, number)
        ]

    def known_plans(self, wildcards: Wildcards) -> list[str]:
        """All plans whose losses are known: of earlier trials, and the draft for a target of ms."""
        draft = [f"{self._folder(wildcards)}/first/draft.json"] if self._devices(wildcards) else []
        return self.earlier_plans(wildcards) + draft

    def all_trials(self, wildcards: Wildcards) -> list[str]:
        """What every trial of a search lost."""
        folder = f"{self._folder(wildcards)}/search"
        return [f"{folder}/{number}_found.json" for number in self._trial_numbers(wildcards)]

    def trial_files(self, wildcards: Wildcards) -> list[str]:
        """Of every trial what the search takes over from the best, one trial's files together."""
        return [
            f"build/{wildcards.model}/{trial_name(wildcards.method, number)}/{name}"
            for number in self._trial_numbers(wildcards)
            for name in SETTLED
        ]

    def delivered(self, wildcards: Wildcards) -> str:
        """The ONNX file of trial `{number}` that would be delivered: in int8 where asked for."""
        folder = f"build/{wildcards.model}/{trial_name(wildcards.method, int(wildcards.number))}"
        return f"{folder}/int8" if self.quantize(wildcards) else f"{folder}/model.onnx"

    def search(self, wildcards: Wildcards) -> list[str]:
        """Which trial a search took; none for other methods."""
        if wildcards.method not in self.params.searching:
            return []
        return [f"{self._folder(wildcards)}/search.json"]

    def measured_quantize(self, wildcards: Wildcards) -> str:
        """How a variant is quantised, for a rule that counts what that saves; else empty."""
        return self.quantize(wildcards) if self._measures(wildcards) else ""

    def first_plan(self, wildcards: Wildcards) -> list[str]:
        """The plan of the first round, for a rule that shared out all ranks there; else none."""
        if self._round(wildcards) == 1 or not self._shares_out(wildcards):
            return []
        return [f"{self._folder(wildcards)}/first/ranks.json"]

    def moments(self, wildcards: Wildcards) -> list[str]:
        """The moments of a round's layers, for a method that keeps their outputs; else none."""
        if not self._keeps_outputs(wildcards):
            return []
        at, method = _at(self._round(wildcards)), self._asking(wildcards.method)
        return [f"build/moments/{wildcards.model}/{method}/{at}.safetensors"]

    def calibration_json(self, wildcards: Wildcards) -> str:
        """How those are made, as JSON; empty where there are none."""
        if not self._keeps_outputs(wildcards):
            return "{}"
        return json.dumps(
            {"images": self.images(wildcards)} | self.params.calibrate.model_dump(mode="json")
        )

    def images(self, wildcards: Wildcards) -> int:
        """On how many training images a method's layers keep their outputs."""
        return self.params.methods[wildcards.method].factorize.images

    def stages_left(self, wildcards: Wildcards) -> int:
        """Rounds, this one included, in which a layer comes down to the rule's ranks."""
        schedule = self.params.methods[wildcards.method].schedule
        if schedule.kind != "multi_stage":
            return 1
        return schedule.stages - self._round(wildcards) + 1

    def ranks_json(self, wildcards: Wildcards) -> str:
        """How the ranks of a variant are chosen, as JSON."""
        return self.params.ranks_of(wildcards.model, wildcards.method).model_dump_json()

    def finetune(self, wildcards: Wildcards) -> RoundSettings:
        """How a round is trained: the budget of a whole schedule is shared out over its rounds."""
        settings = self.params.finetune_of(wildcards.model, wildcards.method)
        rounds = self.rounds(wildcards.model, wildcards.method)
        return settings.of_round(self._round(wildcards), len(rounds))

    def teacher(self, wildcards: Wildcards) -> list[str]:
        """The original network, or its outputs, where a round learns from them; else none."""
        settings = self.finetune(wildcards)
        distill = settings.distill
        if not distill.weight or not settings.trains:
            return []
        file = "outputs" if distill.images == "plain" else "model"
        return [f"build/{wildcards.model}/original/{file}.safetensors"]

    def is_last(self, wildcards: Wildcards) -> bool:
        """Whether a round is the last of its schedule."""
        return self._round(wildcards) == len(self.rounds(wildcards.model, wildcards.method))

    def dataset(self, wildcards: Wildcards) -> str:
        """The folder of the dataset that a model is trained on."""
        return f"data/datasets/{self.params.checkpoint[wildcards.model].dataset}"

    def validation_json(self, wildcards: Wildcards) -> str:
        """Which images choices about a network are made on, as JSON."""
        return json.dumps(self.params.checkpoint[wildcards.model].validation.to_document())

    def decoding_json(self, wildcards: Wildcards) -> str:
        """How a folder of validation images is read, as JSON; empty where there is none."""
        if self.params.checkpoint[wildcards.model].validation.folder is None:
            return "{}"
        return self._dataset_settings(wildcards).model_dump_json()

    def threads_of_splits(self, wildcards: Wildcards) -> int:
        """CPU threads that decode a folder of validation images."""
        if self.params.checkpoint[wildcards.model].validation.folder is None:
            return 1
        return self._dataset_settings(wildcards).threads

    def _dataset_settings(self, wildcards: Wildcards) -> DatasetSettings:
        return self.params.dataset[self.params.checkpoint[wildcards.model].dataset]

    def network_json(self, wildcards: Wildcards) -> str:
        """How a model's network is built, as JSON."""
        return json.dumps(self._source(wildcards.model).to_json())

    def weights(self, wildcards: Wildcards) -> str:
        """The file of a model's trained weights. Raises UserError where nothing can provide it."""
        model = wildcards.model
        settings = self.params.checkpoint[model]
        path = settings.weights
        made_here = path == f"build/pretrain/{model}.safetensors" or (
            settings.torchvision_weights and path == self.downloaded(model)
        )
        if not made_here and not Path(path).is_file():
            raise UserError(
                f"{path}: no such checkpoint (`checkpoint.{model}.weights` in params.yaml). "
                f"{self._advice(model)}"
            )
        return path

    @staticmethod
    def downloaded(model: str) -> str:
        """Where weights from torchvision are kept."""
        return f"data/weights/{model}.pth"

    def _advice(self, model: str) -> str:
        """Where a model's weights may come from."""
        network = self._source(model).network
        if network in WEIGHTS_ELSEWHERE:
            return f"Put {WEIGHTS_ELSEWHERE[network]} there, or name another file."
        if model in self.params.pretrain:
            return (
                "Put the trained weights there, name another file, or train them: "
                f"`snakemake --cores 2 build/pretrain/{model}.safetensors`."
            )
        return (
            "Put the trained weights there, or name another file; for a network of torchvision's, "
            f"name its weights as `torchvision_weights` and {self.downloaded(model)} as `weights`, "
            "and they are downloaded."
        )

    def _source(self, model: str) -> NetworkSource:
        return self.params.checkpoint[model].named(model)

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
        """The network that the last round leaves; the original where there is no round."""
        last = len(self.rounds(wildcards.model, wildcards.method))
        if not last:
            return f"build/{wildcards.model}/original/model.safetensors"
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

    def factors_before(self, wildcards: Wildcards) -> list[str]:
        """For `sequential`: factors of the round's layers before this one; else none."""
        if not self._is_sequential(wildcards):
            return []
        folder = self.factors_folder(wildcards)
        taken, table = self._layers(wildcards), self._table(wildcards.model)
        names = [layer.name for layer in table.layers if layer.name in taken]
        before = names[: names.index(wildcards.layer)] if wildcards.layer in names else []
        return [f"{folder}/{layer}.safetensors" for layer in before]

    def original_beside(self, wildcards: Wildcards) -> list[str]:
        """For `sequential`: the original network; else none."""
        if not self._is_sequential(wildcards):
            return []
        return [f"build/{wildcards.model}/original/model.safetensors"]

    def images_beside(self, wildcards: Wildcards) -> list[str]:
        """For `sequential`: the dataset; else none."""
        return [self.dataset(wildcards)] if self._is_sequential(wildcards) else []

    def splits_beside(self, wildcards: Wildcards) -> list[str]:
        """For `sequential`: which of its images are for training; else none."""
        return [_splits(wildcards)] if self._is_sequential(wildcards) else []

    def number_of_images_beside(self, wildcards: Wildcards) -> int:
        """For `sequential`: training images; else 0."""
        return self.images(wildcards) if self._is_sequential(wildcards) else 0

    def moments_beside(self, wildcards: Wildcards) -> list[str]:
        """The moments that a layer is decomposed by; none for `sequential`, which makes them."""
        return [] if self._is_sequential(wildcards) else self.moments(wildcards)

    def threads_of_decompose(self, wildcards: Wildcards) -> int:
        """CPU threads of a layer's job, which for `sequential` runs alone and over images."""
        sequential = self._is_sequential(wildcards)
        return self.params.calibrate.threads if sequential else self.params.decompose.threads

    def plans(self, wildcards: Wildcards) -> list[str]:
        """The plan of every round; an empty one, which DVC expects, where there is no round."""
        folder = self._folder(wildcards)
        numbers = self._numbers(wildcards) or [1]
        return [f"{folder}/{_at(number)}/ranks.json" for number in numbers]

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

    def quantize(self, wildcards: Wildcards) -> str:
        """How a variant is quantised; empty where it is not."""
        return self.params.methods[wildcards.method].quantize or ""

    def quantized(self, wildcards: Wildcards) -> list[str]:
        """The folder of a variant in int8, where its method asks for one; else none."""
        if not self.quantize(wildcards):
            return []
        return [f"{self._folder(wildcards)}/int8"]

    def descriptions(self, wildcards: Wildcards) -> list[str]:
        """What the processor of each device of the matrix can do; the main device first."""
        return [f"build/devices/{device}.json" for device in self.params.matrix.devices]

    def connections_json(self, wildcards: Wildcards) -> str:
        """How the devices of the matrix are reached, where int8 files are timed there; else none.

        Without how they measure: another number of runs is no reason to quantize again.
        """
        timed = self.params.matrix.devices if self.params.quantize.by_time else ()
        return json.dumps(
            {name: json.loads(self.params.benchmark[name].connection_json()) for name in timed}
        )

    def device_signature(self, wildcards: Wildcards) -> str:
        """What a description depends on: the processor and runtime of a device that is this one."""
        if self.params.benchmark[wildcards.device].kind != "local":
            return ""
        return here_signature()

    def ready_int8(self, wildcards: Wildcards) -> list[str]:
        """The original's folder in int8, for a method that leaves the original as it is."""
        if not self.quantize(wildcards) or self.rounds(wildcards.model, wildcards.method):
            return []
        return [f"build/{wildcards.model}/original/int8"]

    def control_found(self, wildcards: Wildcards) -> list[str]:
        """What the original loses in int8, for a search that delivers int8; else none."""
        if not self.quantize(wildcards):
            return []
        return [f"{self._folder(wildcards)}/search/control_found.json"]

    def benchmarks(self, wildcards: Wildcards) -> list[str]:
        """The measurements on every device."""
        folder = f"{self._folder(wildcards)}/benchmark"
        return [f"{folder}/{device}.json" for device in self.params.matrix.devices]

    def described_json(self, wildcards: Wildcards) -> str:
        """What a variant's card states beside what was measured, as JSON."""
        name = f"{wildcards.model}_{wildcards.method}"
        return json.dumps(
            {
                "name": name,
                "data": self.params.checkpoint[wildcards.model].dataset,
                "method": self._stated(wildcards),
                "configuration": configuration_of(
                    self._document, self.params, wildcards.model, wildcards.method
                ),
            }
        )

    def stated(self, wildcards: Wildcards) -> str:
        """A variant's method with all that applies to its network, as YAML."""
        return yaml.safe_dump(self._stated(wildcards), sort_keys=False, width=100)

    def _stated(self, wildcards: Wildcards) -> dict[str, Any]:
        model, method = wildcards.model, wildcards.method
        settings = self.params.methods[method]
        sections = {
            "factorize": settings.factorize,
            "ranks": self.params.ranks_of(model, method),
            "schedule": settings.schedule,
            "finetune": self.params.finetune_of(model, method),
        }
        return {
            "name": method,
            **{
                name: section.model_dump(mode="json", exclude_none=True, exclude_unset=True)
                for name, section in sections.items()
            },
            "quantize": settings.quantize,
        }

    def devices_stated(self) -> str:
        """How each device of the matrix measures, as YAML."""
        devices = {
            name: self.params.benchmark[name].model_dump(mode="json", exclude_none=True)
            for name in self.params.matrix.devices
        }
        return yaml.safe_dump(devices, sort_keys=False, width=100)

    @property
    def matrix_results(self) -> list[str]:
        """The results of the matrix."""
        return [f"results/{name}.json" for name in self.variants()]

    @property
    def compared(self) -> dict[str, str]:
        """What the overview holds beside the matrix: `model:method` of each, and its digest.

        Every other result that there is, but for those of studies, which have their own pictures.
        """
        studied = {
            f"{model}_{method}"
            for name, study in self.params.studies.items()
            for model in study.models
            for method in study.methods(name)
        }
        matrix = self.variants()
        found = {}
        for path in sorted(RESULTS.glob("*.json")):
            known = self._known.get(path.stem)
            if known and path.stem not in matrix and path.stem not in studied:
                found[":".join(known)] = sha256_of(path)[:12]
        return found

    @property
    def overview_variants(self) -> str:
        """`model:method` of each variant of the overview."""
        return " ".join([*map(":".join, self.variants().values()), *self.compared])

    @property
    def unknown_variant(self) -> str:
        """A pattern for every `{variant}` that is not a known `{model}_{method}`."""
        known = f"(?:{self.one_of('checkpoint')})_(?:{self.one_of('methods')})"
        return rf"(?!(?:{known})\.json$)[^/]+"

    def refuse(self, wildcards: Any) -> list[str]:
        """Raise UserError for a result whose model or method is not in params.yaml."""
        return list(self.variants([wildcards.variant]))

    def study_results(self, wildcards: Wildcards) -> list[str]:
        """The results of every variant of a study, on each of its networks."""
        study = self.params.studies[wildcards.study]
        return [
            f"results/{model}_{method}.json"
            for model in study.models
            for method in study.methods(wildcards.study)
        ]

    def _asking(self, method: str) -> str:
        """The method that a trial belongs to, whose moments and latencies it shares; or itself."""
        trial = self.params.trial_of(method)
        return trial[0] if trial else method

    def _trial_numbers(self, wildcards: Wildcards) -> range:
        return range(1, self.params.methods[wildcards.method].ranks.search.trials + 1)

    def _layers(self, wildcards: Wildcards) -> dict[str, str]:
        rounds = self.rounds(wildcards.model, wildcards.method)
        number = self._round(wildcards)
        if number == 1 and not rounds:
            return {}
        if number > len(rounds):
            raise UserError(
                f"{wildcards.model}_{wildcards.method} has {len(rounds)} rounds; "
                f"there is no round {number}."
            )
        return rounds[number - 1]

    def _keeps_outputs(self, wildcards: Wildcards) -> bool:
        return self.params.methods[wildcards.method].factorize.norm == "activation"

    def _is_sequential(self, wildcards: Wildcards) -> bool:
        return self.params.methods[wildcards.method].factorize.sequential

    def _shares_out(self, wildcards: Wildcards) -> bool:
        # A control, which factors nothing, has no ranks to share out.
        factors = any(self.params.methods[wildcards.method].factorize.by_kind().values())
        rule = self.params.ranks_of(wildcards.model, wildcards.method)
        return factors and rule.looks_at_all_layers

    def _measures(self, wildcards: Wildcards) -> bool:
        return self._round(wildcards) == 1 and self._shares_out(wildcards)

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

    def _numbers(self, wildcards: Wildcards) -> range:
        return range(1, len(self.rounds(wildcards.model, wildcards.method)) + 1)

    def _table(self, model: str) -> LayerTable:
        path, source = self._tables / f"{model}.json", self._source(model).to_json()
        # A table of the network as it was described or written before is no use.
        if not self._is_current(path, model):
            # In a process of its own: the graph must not wait for PyTorch every time.
            arguments = ["inspect", "--name", model, "--output", str(path), "--"]
            run_step([*arguments, json.dumps(source)], output=path, about=f"checkpoint.{model}")
            self._note_code_of_table(model)
        return LayerTable.from_json(read_json(path))

    def table(self, wildcards: Wildcards) -> str:
        """The layer table of a network, which is made when the graph is read where it is stale."""
        self._table(wildcards.model)
        return str(self._tables / f"{wildcards.model}.json")

    def _is_current(self, path: Path, model: str) -> bool:
        if not path.exists():
            return False
        table, source = read_json(path), self._source(model).to_json()
        if table.get("source", source) != source:
            return False
        if table.get("code", "lowrank") != self.network_code(model):
            return False
        # Shipped tables fit the code beside them; from then on a note says what code made them.
        note = TABLE_CODE / model
        if not note.exists():
            self._note_code_of_table(model)
        return note.read_text() == digest_of_step("inspect")

    @staticmethod
    def _note_code_of_table(model: str) -> None:
        write_text(TABLE_CODE / model, digest_of_step("inspect"))

    @staticmethod
    def _folder(wildcards: Wildcards) -> str:
        return f"build/{wildcards.model}/{wildcards.method}"

    @staticmethod
    def _round(wildcards: Wildcards) -> int:
        if "at" in wildcards.keys():  # noqa: SIM118  (Snakemake's wildcards are no mapping)
            return 1 if wildcards.at == "first" else int(wildcards.at.removeprefix("rounds/"))
        return int(wildcards.round)


@functools.cache
def here_signature() -> str:
    """What int8 files and latencies of this machine depend on: its processor and its runtime."""
    from importlib.metadata import PackageNotFoundError, version

    from lowrank.devices.processor import Processor

    try:
        runtime = version("onnxruntime")
    except PackageNotFoundError:
        runtime = "of another package"  # onnxruntime-gpu, say
    return f"{Processor.here().signature}; onnxruntime {runtime}"


def _splits(wildcards: Wildcards) -> str:
    return f"build/{wildcards.model}/original/splits"


def _refuse_unfit_names(layers: Sequence[str], model: str) -> None:
    """Raise UserError for a layer whose name cannot be a file's."""
    for name in layers:
        if not re.fullmatch(LAYER_NAME, name):
            raise UserError(
                f"{model}: its layer {name!r} cannot be factored, for its factors get a file of "
                "that name: expected letters, digits, `_`, `-` and `.`. Rename it in the network, "
                "or name it under `exclude` of the method's `factorize`."
            )


def _at(number: int) -> str:
    return "first" if number == 1 else f"rounds/{number}"
