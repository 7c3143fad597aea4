"""What workflow/rules/compress.smk asks: ranks, moments, factors, fine-tuning."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from lowrank.config.finetune import RoundSettings
from lowrank.config.params import trial_name
from lowrank.errors import unknown_name
from lowrank.graph.names import (
    Wildcards,
    place_of_round,
    splits_of,
)

if TYPE_CHECKING:
    from lowrank.graph.pipeline import Graph


class CompressRules:
    """Inputs and settings of the rules that make up a round."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.params = graph, graph.params

    def all_layers_json(self, wildcards: Wildcards) -> str:
        """The layers of every round with their factorizations, as JSON, where the rule needs them.

        Empty for a rule that looks at one layer at a time.
        """
        if not self.graph.shares_out(wildcards):
            return "{}"
        rounds = self.graph.rounds(wildcards.model, wildcards.method)
        return json.dumps({name: each for layers in rounds for name, each in layers.items()})

    def alternatives_json(self, wildcards: Wildcards) -> str:
        """Further factorizations that a rule may give to a layer, as JSON."""
        return json.dumps(self.params.methods[wildcards.method].factorize.alternatives)

    def measured_on(self, wildcards: Wildcards) -> list[str]:
        """The dataset, on which rules measure losses and every choice of ranks is tried.

        None for a round that decomposes nothing.
        """
        return [self.graph.dataset(wildcards)] if self.graph.layers(wildcards) else []

    def measured_splits(self, wildcards: Wildcards) -> list[str]:
        """Which of its images those are; else none."""
        return [splits_of(wildcards)] if self.graph.layers(wildcards) else []

    def measured_moments(self, wildcards: Wildcards) -> list[str]:
        """The moments that layers are tried with there, for `norm: activation`; else none."""
        tries = self.graph.layers(wildcards) and self.predict(wildcards)
        return self.moments(wildcards) if tries or self.graph.measures(wildcards) else []

    def latencies(self, wildcards: Wildcards) -> list[str]:
        """What layers take on each device whose latency the target bounds, by the draft; else none.

        Raises UserError for a device that is not known.
        """
        folder = f"{self.graph.folder(wildcards)}/first"
        return [f"{folder}/latencies/{device}.json" for device in self._devices(wildcards)]

    def latencies_of_layers(self, wildcards: Wildcards) -> list[str]:
        """The same before the draft: what trials of a search share."""
        folder = f"build/{wildcards.model}/{self.graph.asking_method(wildcards.method)}"
        return [f"{folder}/latencies/{device}.json" for device in self._devices(wildcards)]

    def latencies_of_device(self, wildcards: Wildcards) -> str:
        """The same of `{device}`."""
        folder = f"build/{wildcards.model}/{self.graph.asking_method(wildcards.method)}"
        return f"{folder}/latencies/{wildcards.device}.json"

    def _devices(self, wildcards: Wildcards) -> list[str]:
        devices = self.params.ranks_of(wildcards.model, wildcards.method).devices
        for device in devices:
            if device not in self.params.benchmark:
                where = f"params.yaml: `methods.{wildcards.method}.ranks.target.latency_ms`"
                raise unknown_name("device", device, self.params.benchmark, where=where)
        return list(devices) if self.graph.measures(wildcards) else []

    def measured_calibration_json(self, wildcards: Wildcards) -> str:
        """How those are made, as JSON; empty where there are none."""
        return self.calibration_json(wildcards) if self.measured_moments(wildcards) else "{}"

    def predict(self, wildcards: Wildcards) -> bool:
        """Whether the chosen ranks are tried at once; those of `sequential` follow one another."""
        return not self.graph.is_sequential(wildcards)

    def largest_drop(self, wildcards: Wildcards) -> float:
        """What the factors of a round may cost before fine-tuning, to be measured there; 1: any.

        For what `select_ranks` does not try, or not if it takes long. A trial may lose anything.
        """
        from lowrank.factorize import get_factorization

        methods = map(get_factorization, self.graph.layers(wildcards).values())
        tried = self.predict(wildcards) and all(each.is_closed_form for each in methods)
        if tried or self.params.trial_of(wildcards.method):
            return 1.0
        return self.params.ranks_of(wildcards.model, wildcards.method).largest_drop

    def calibrated_json(self, wildcards: Wildcards) -> str:
        """The layers whose moments a round needs, as JSON: its own, or those of every round."""
        if self.graph.measures(wildcards):
            return self.all_layers_json(wildcards)
        return self.graph.layers_json(wildcards)

    def aim(self, wildcards: Wildcards) -> list[str]:
        """What a trial may cost; none for what is no trial."""
        trial = self.params.trial_of(wildcards.method)
        if not trial:
            return []
        method, number = trial
        return [f"build/{wildcards.model}/{method}/search/{number}.json"]

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
        draft = (
            [f"{self.graph.folder(wildcards)}/first/draft.json"] if self._devices(wildcards) else []
        )
        return self.earlier_plans(wildcards) + draft

    def measured_quantize(self, wildcards: Wildcards) -> str:
        """How a variant is quantised, for a rule that counts what that saves; else empty."""
        return self.graph.quantize(wildcards) if self.graph.measures(wildcards) else ""

    def first_plan(self, wildcards: Wildcards) -> list[str]:
        """The plan of the first round, for a rule that shared out all ranks there; else none."""
        if self.graph.round_number(wildcards) == 1 or not self.graph.shares_out(wildcards):
            return []
        return [f"{self.graph.folder(wildcards)}/first/ranks.json"]

    def moments(self, wildcards: Wildcards) -> list[str]:
        """The moments of a round's layers, for a method that keeps their outputs; else none."""
        if not self.graph.keeps_outputs(wildcards):
            return []
        at, method = (
            place_of_round(self.graph.round_number(wildcards)),
            self.graph.asking_method(wildcards.method),
        )
        return [f"build/moments/{wildcards.model}/{method}/{at}.safetensors"]

    def calibration_json(self, wildcards: Wildcards) -> str:
        """How those are made, as JSON; empty where there are none."""
        if not self.graph.keeps_outputs(wildcards):
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
        return schedule.stages - self.graph.round_number(wildcards) + 1

    def finetune(self, wildcards: Wildcards) -> RoundSettings:
        """How a round is trained: the budget of a whole schedule is shared out over its rounds."""
        settings = self.params.finetune_of(wildcards.model, wildcards.method)
        rounds = self.graph.rounds(wildcards.model, wildcards.method)
        return settings.of_round(self.graph.round_number(wildcards), len(rounds))

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
        return self.graph.round_number(wildcards) == len(
            self.graph.rounds(wildcards.model, wildcards.method)
        )

    def state_before(self, wildcards: Wildcards) -> str:
        """The network that a round starts from."""
        number = self.graph.round_number(wildcards)
        if number == 1:
            return f"build/{wildcards.model}/original/model.safetensors"
        return f"{self.graph.folder(wildcards)}/rounds/{number - 1}/model.safetensors"

    def factors_folder(self, wildcards: Wildcards) -> str:
        """Where the factors of a round are."""
        at = place_of_round(self.graph.round_number(wildcards))
        return f"{self.graph.folder(wildcards)}/{at}/factors"

    def factors(self, wildcards: Wildcards) -> list[str]:
        """The factors of a round, a file for each layer."""
        folder = self.factors_folder(wildcards)
        return [f"{folder}/{layer}.safetensors" for layer in self.graph.layers(wildcards)]

    def factors_before(self, wildcards: Wildcards) -> list[str]:
        """For `sequential`: factors of the round's layers before this one; else none."""
        if not self.graph.is_sequential(wildcards):
            return []
        folder = self.factors_folder(wildcards)
        taken, table = self.graph.layers(wildcards), self.graph.tables.read(wildcards.model)
        names = [layer.name for layer in table.layers if layer.name in taken]
        before = names[: names.index(wildcards.layer)] if wildcards.layer in names else []
        return [f"{folder}/{layer}.safetensors" for layer in before]

    def original_beside(self, wildcards: Wildcards) -> list[str]:
        """For `sequential`: the original network; else none."""
        if not self.graph.is_sequential(wildcards):
            return []
        return [f"build/{wildcards.model}/original/model.safetensors"]

    def images_beside(self, wildcards: Wildcards) -> list[str]:
        """For `sequential`: the dataset; else none."""
        return [self.graph.dataset(wildcards)] if self.graph.is_sequential(wildcards) else []

    def splits_beside(self, wildcards: Wildcards) -> list[str]:
        """For `sequential`: which of its images are for training; else none."""
        return [splits_of(wildcards)] if self.graph.is_sequential(wildcards) else []

    def number_of_images_beside(self, wildcards: Wildcards) -> int:
        """For `sequential`: training images; else 0."""
        return self.images(wildcards) if self.graph.is_sequential(wildcards) else 0

    def moments_beside(self, wildcards: Wildcards) -> list[str]:
        """The moments that a layer is decomposed by; none for `sequential`, which makes them."""
        return [] if self.graph.is_sequential(wildcards) else self.moments(wildcards)

    def threads_of_decompose(self, wildcards: Wildcards) -> int:
        """CPU threads of a layer's job, which for `sequential` runs alone and over images."""
        sequential = self.graph.is_sequential(wildcards)
        return self.params.calibrate.threads if sequential else self.params.decompose.threads
