"""Answers for workflow/rules/compress.smk: ranks, moments, factors and fine-tuning."""

from __future__ import annotations

import functools
import json

from lowrank.config.finetune import RoundSettings
from lowrank.config.params import trial_name
from lowrank.errors import unknown_name
from lowrank.graph.names import (
    Wildcards,
    folder_of_trial,
    method_of,
    place_of_round,
    splits_of,
)
from lowrank.graph.rules import Rules


class CompressRules(Rules):
    """Inputs and settings of the rules that make up a round."""

    def all_layers_json(self, wildcards: Wildcards) -> str:
        """Return the layers of all rounds with their factorizations, as JSON.

        Return `{}` for a rank rule that looks at one layer at a time, which does not need them.
        """
        if not self.graph.chooses_ranks_together(wildcards):
            return "{}"
        rounds = self.graph.rounds(wildcards.model, method_of(wildcards))
        return json.dumps({name: form for layers in rounds for name, form in layers.items()})

    def alternatives_json(self, wildcards: Wildcards) -> str:
        """Return the alternative factorizations that a rank rule may choose, as JSON."""
        return json.dumps(self.params.methods[method_of(wildcards)].factorize.alternatives)

    def measured_dataset(self, wildcards: Wildcards) -> list[str]:
        """Return the dataset on which losses are measured and chosen ranks are evaluated.

        Empty for a round that decomposes nothing.
        """
        return [self.graph.dataset(wildcards)] if self.graph.layers(wildcards) else []

    def measured_splits(self, wildcards: Wildcards) -> list[str]:
        """Return the splits of that dataset; empty for a round that decomposes nothing."""
        return [splits_of(wildcards)] if self.graph.layers(wildcards) else []

    def measured_moments(self, wildcards: Wildcards) -> list[str]:
        """Return the moments with which ranks are evaluated, for `norm: activation`; else none."""
        tries = self.graph.layers(wildcards) and self.predict(wildcards)
        return self.moments(wildcards) if tries or self.graph.measures(wildcards) else []

    def latencies(self, wildcards: Wildcards) -> list[str]:
        """Return the latencies of layers, corrected by the draft, on each device of the target.

        Empty without a target of `latency_ms`. Raises UserError for an unknown device.
        """
        folder = f"{self.graph.folder(wildcards)}/first"
        return [f"{folder}/latencies/{device}.json" for device in self._devices(wildcards)]

    def latencies_of_layers(self, wildcards: Wildcards) -> list[str]:
        """Return the latencies of layers before the draft, which all trials of a search share."""
        folder = self._folder_of_latencies(wildcards)
        return [f"{folder}/{device}.json" for device in self._devices(wildcards)]

    def latencies_of_device(self, wildcards: Wildcards) -> str:
        """Return the latencies of layers before the draft on `{device}`."""
        return f"{self._folder_of_latencies(wildcards)}/{wildcards.device}.json"

    def _folder_of_latencies(self, wildcards: Wildcards) -> str:
        """Return the folder of the latencies of layers: for a trial, that of the first trial."""
        method = method_of(wildcards)
        if trial := self.params.trial_of(method):
            method = trial_name(trial[0], 1)
        return f"build/{wildcards.model}/{self.graph.folder_name(method)}/latencies"

    def _devices(self, wildcards: Wildcards) -> list[str]:
        devices = self.params.ranks_of(wildcards.model, method_of(wildcards)).devices
        for device in devices:
            if device not in self.params.benchmark:
                where = f"params.yaml: `methods.{method_of(wildcards)}.ranks.target.latency_ms`"
                raise unknown_name("device", device, self.params.benchmark, where=where)
        return list(devices) if self.graph.measures(wildcards) else []

    def measured_calibration_json(self, wildcards: Wildcards) -> str:
        """Return the settings of `measured_moments`, as JSON; `{}` if there are none."""
        return self.calibration_json(wildcards) if self.measured_moments(wildcards) else "{}"

    def predict(self, wildcards: Wildcards) -> bool:
        """Return whether `select_ranks` evaluates the chosen ranks. Not possible if sequential."""
        return not self.graph.is_sequential(wildcards)

    def largest_drop(self, wildcards: Wildcards) -> float:
        """Return the accuracy drop that a round may have before its fine-tuning; 1 for no limit.

        The step `finetune` checks the limit if `select_ranks` cannot evaluate the ranks, or would
        take too long. Trials of a search have no limit.
        """
        from lowrank.factorize import get_factorization

        methods = map(get_factorization, self.graph.layers(wildcards).values())
        is_evaluated = self.predict(wildcards) and all(method.is_closed_form for method in methods)
        if is_evaluated or self.params.trial_of(method_of(wildcards)):
            return 1.0
        return self.params.ranks_of(wildcards.model, method_of(wildcards)).largest_drop

    def calibrated_json(self, wildcards: Wildcards) -> str:
        """Return the layers whose moments a round needs, as JSON: its own, or all layers."""
        if self.graph.measures(wildcards):
            return self.all_layers_json(wildcards)
        return self.graph.layers_json(wildcards)

    def aim(self, wildcards: Wildcards) -> list[str]:
        """Return the file with the cost that a trial may have; empty if the method is no trial."""
        trial = self.params.trial_of(method_of(wildcards))
        if not trial:
            return []
        method, number = trial
        return [f"build/{wildcards.model}/{folder_of_trial(method, number)}/share.json"]

    def earlier_plans(self, wildcards: Wildcards) -> list[str]:
        """Return the plans of the earlier trials of a search; empty if the method is no trial."""
        trial = self.params.trial_of(method_of(wildcards))
        if not trial:
            return []
        method, number = trial
        return [
            f"build/{wildcards.model}/{folder_of_trial(method, earlier)}/first/ranks.json"
            for earlier in range(1, number)
        ]

    def known_plans(self, wildcards: Wildcards) -> list[str]:
        """Return all earlier plans: those of earlier trials, and the draft of a latency target."""
        draft = (
            [f"{self.graph.folder(wildcards)}/first/draft.json"] if self._devices(wildcards) else []
        )
        return self.earlier_plans(wildcards) + draft

    def measured_quantize(self, wildcards: Wildcards) -> str:
        """Return the quantization of a variant, for rank rules that count its savings; else ''."""
        return self.graph.quantize(wildcards) if self.graph.measures(wildcards) else ""

    def first_plan(self, wildcards: Wildcards) -> list[str]:
        """Return the plan of the first round, if its rank rule chose all ranks there; else none."""
        if self.graph.round_number(wildcards) == 1 or not self.graph.chooses_ranks_together(
            wildcards
        ):
            return []
        return [f"{self.graph.folder(wildcards)}/first/ranks.json"]

    def moments(self, wildcards: Wildcards) -> list[str]:
        """Return the moments of a round's layers, for `norm: activation`; else none."""
        if not self.graph.keeps_outputs(wildcards):
            return []
        at, method = (
            place_of_round(self.graph.round_number(wildcards)),
            self.graph.searching_method(method_of(wildcards)),
        )
        return [f"build/moments/{wildcards.model}/{method}/{at}.safetensors"]

    def calibration_json(self, wildcards: Wildcards) -> str:
        """Return the settings of `moments`, as JSON; `{}` if there are none."""
        if not self.graph.keeps_outputs(wildcards):
            return "{}"
        return json.dumps(
            {"images": self.images(wildcards)} | self.params.calibrate.model_dump(mode="json")
        )

    def images(self, wildcards: Wildcards) -> int:
        """Return the number of training images on which the error of outputs is minimized."""
        return self.params.methods[method_of(wildcards)].factorize.images

    def stages_left(self, wildcards: Wildcards) -> int:
        """Return the number of rounds, including this one, until a layer has its final ranks."""
        schedule = self.params.methods[method_of(wildcards)].schedule
        if schedule.kind != "multi_stage":
            return 1
        return schedule.stages - self.graph.round_number(wildcards) + 1

    def finetune(self, wildcards: Wildcards) -> RoundSettings:
        """Return the training settings of a round. A budget is divided among all rounds.

        Raises UserError if arrays are to be augmented.
        """
        number = self.graph.round_number(wildcards)
        return self._finetune(wildcards.model, method_of(wildcards), number)

    @functools.cache  # noqa: B019  (There is one graph per process.)
    def _finetune(self, model: str, method: str, number: int) -> RoundSettings:
        settings = self.params.finetune_of(model, method)
        dataset = self.params.checkpoint[model].dataset
        if settings.trains and self.params.dataset[dataset].has_arrays:
            # Training refuses it, too, but only after hours of other steps.
            settings.augment.require_none()
        return settings.of_round(number, len(self.graph.rounds(model, method)))

    def teacher(self, wildcards: Wildcards) -> list[str]:
        """Return the original network or its outputs, if a round learns from them; else none."""
        settings = self.finetune(wildcards)
        distill = settings.distill
        if not distill.weight or not settings.trains:
            return []
        file = "outputs" if distill.images == "plain" else "model"
        return [f"build/{wildcards.model}/original/{file}.safetensors"]

    def is_last(self, wildcards: Wildcards) -> bool:
        """Return whether a round is the last of its schedule."""
        return self.graph.round_number(wildcards) == len(
            self.graph.rounds(wildcards.model, method_of(wildcards))
        )

    def state_before(self, wildcards: Wildcards) -> str:
        """Return the network that a round starts from."""
        number = self.graph.round_number(wildcards)
        if number == 1:
            return f"build/{wildcards.model}/original/model.safetensors"
        return f"{self.graph.folder(wildcards)}/rounds/{number - 1}/model.safetensors"

    def factors_folder(self, wildcards: Wildcards) -> str:
        """Return the folder of a round's factors."""
        at = place_of_round(self.graph.round_number(wildcards))
        return f"{self.graph.folder(wildcards)}/{at}/factors"

    def factors(self, wildcards: Wildcards) -> list[str]:
        """Return the factors of a round: a file for each layer, or their folder."""
        folder = self.factors_folder(wildcards)
        if self.params.decompose.jobs == "round":
            return [folder]
        return [f"{folder}/{layer}.safetensors" for layer in self.graph.layers(wildcards)]

    def factors_before(self, wildcards: Wildcards) -> list[str]:
        """Return the factors of the round's preceding layers, for `sequential`; else none."""
        if not self.graph.is_sequential(wildcards):
            return []
        folder = self.factors_folder(wildcards)
        layers, table = self.graph.layers(wildcards), self.graph.tables.read(wildcards.model)
        names = [layer.name for layer in table.layers if layer.name in layers]
        before = names[: names.index(wildcards.layer)] if wildcards.layer in names else []
        return [f"{folder}/{layer}.safetensors" for layer in before]

    def sequential_original(self, wildcards: Wildcards) -> list[str]:
        """Return the original network, for `sequential`; else none."""
        if not self.graph.is_sequential(wildcards):
            return []
        return [f"build/{wildcards.model}/original/model.safetensors"]

    def sequential_dataset(self, wildcards: Wildcards) -> list[str]:
        """Return the dataset, for `sequential`; else none."""
        return [self.graph.dataset(wildcards)] if self.graph.is_sequential(wildcards) else []

    def sequential_splits(self, wildcards: Wildcards) -> list[str]:
        """Return the splits, which name the training images, for `sequential`; else none."""
        return [splits_of(wildcards)] if self.graph.is_sequential(wildcards) else []

    def sequential_images(self, wildcards: Wildcards) -> int:
        """Return the number of training images, for `sequential`; else 0."""
        return self.images(wildcards) if self.graph.is_sequential(wildcards) else 0

    def layer_moments(self, wildcards: Wildcards) -> list[str]:
        """Return the moments for decomposing a layer; none for `sequential`, which makes them."""
        return [] if self.graph.is_sequential(wildcards) else self.moments(wildcards)

    def layers_at_once(self, wildcards: Wildcards) -> int:
        """Return the number of layers of a round that are decomposed at the same time."""
        if self.graph.is_sequential(wildcards):
            return 1
        layers = len(self.graph.layers(wildcards))
        return max(1, min(layers, self.params.decompose.layers_at_once))

    def threads_of_round(self, wildcards: Wildcards) -> int:
        """Return the CPU threads of a job that decomposes all layers of a round."""
        return self.layers_at_once(wildcards) * self.threads_of_decompose(wildcards)

    def threads_of_decompose(self, wildcards: Wildcards) -> int:
        """Return the CPU threads of a layer's job. For `sequential` it runs alone, on images."""
        sequential = self.graph.is_sequential(wildcards)
        return self.params.calibrate.threads if sequential else self.params.decompose.threads
