"""Compare ranks from a target with the other rank rules at the same multiply-accumulates.

    python benchmarks/budget.py [--networks resnet20 vgg16] [--images 1000] [--threads 2]
        [--finetune]

VGG-16 is decomposed by Tucker-2 at a tenth of its multiply-accumulates, and ResNet-20 at half of
them. The top-1 accuracy on the 10,000 test images is measured without fine-tuning. With
`--finetune`, networks whose factors minimize the error of outputs are also measured after the
fine-tuning of params.yaml, which takes half an hour for each network. Earlier results of other
networks are kept.

Rank rules without a target get the value with which they meet the target: `energy`, `ratio`, or the
ratio of `sensitivity`. The ranks of `vbmf` are scaled. The prediction of losses is evaluated on
networks with random ranks in all layers, by the rank correlation of expected and measured losses.
Needs the data: `snakemake data/datasets/cifar10`.
"""

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data_aware import inputs, shipped
from scipy.stats import spearmanr
from torch import Tensor, nn

from lowrank.config.reading import load_params
from lowrank.core.layers import Layer
from lowrank.data.datasets import Dataset, open_dataset
from lowrank.evaluation.layer_losses import losses_by_layer
from lowrank.evaluation.network import outputs_of, value_of
from lowrank.factorize import (
    Decomposition,
    Factorization,
    Moments,
    decompose,
    get_factorization,
    one_group,
)
from lowrank.files import read_json, write_json
from lowrank.ranks.bounds import Bound, bounds_of
from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.ranks.curves import Curve, curve_of
from lowrank.ranks.knapsack import Trial, for_target
from lowrank.ranks.rule import Candidate
from lowrank.ranks.rules.sensitivity import SensitivitySettings, shared_out
from lowrank.ranks.scale import cost_of, ranks_within
from lowrank.ranks.select import choose_ranks
from lowrank.surgery.divergence import Divergence
from lowrank.surgery.finding import find_layers
from lowrank.surgery.input_moments import input_moments
from lowrank.surgery.states import put_factors
from lowrank.tasks import get_task
from lowrank.training.distillation import Answers, PlainTeacher
from lowrank.training.loop import train

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "budget.json"
TASK = get_task("classification")
TARGETS = {"resnet20": 0.5, "vgg16": 0.1}
NORMS = ("weight", "activation")
Ranks = dict[str, tuple[int, ...]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--networks", nargs="+", default=list(TARGETS))
    parser.add_argument("--finetune", action="store_true")
    parser.add_argument("--held-out", type=int, default=24, help="Networks with random ranks.")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = open_dataset(ROOT / "data/datasets/cifar10")
    for name in options.networks:
        rows = [
            row | {"network": name, "images": options.images, "threads": options.threads}
            for row in Comparison(name, TARGETS[name], data, options).rows()
        ]
        known = read_json(RESULTS)["rows"] if RESULTS.exists() else []
        others = [row for row in known if row["network"] != name]
        write_json(RESULTS, {"rows": others + rows})


class Comparison:
    """Comparison of the rank rules for one network at one target."""

    def __init__(self, name: str, target: float, data: Dataset, options: Any) -> None:
        self.network, self.spec = shipped(name)
        self.target, self.data, self.options = target, data, options
        self.table = find_layers(self.network, self.spec.input_shape, name)
        method = get_factorization("tucker2")
        self.taken = [
            (layer, method, method.full_ranks(one_group(layer)))
            for layer in self.table.layers
            if layer.kind == "conv" and layer.kernel == (3, 3) and layer.in_channels > 3
        ]
        self.validation = data.validation.sample(options.images)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield a row for each rank rule and norm."""
        rules = {
            "vbmf": self.scaled(self.by_rule(select="vbmf", negligible=0)),
            "energy": self.searched(lambda x: self.by_rule(select="energy", energy=x), 0.05, 1.0),
            "ratio": self.searched(lambda x: self.by_rule(select="ratio", ratio=1 / x), 0.01, 0.99),
            "sensitivity": self.by_sensitivity(),
        }
        for rule, ranks in rules.items():
            for norm in NORMS:
                yield self.row(rule, norm, ranks)
        for norm in NORMS:
            start = time.perf_counter()
            shares = for_target(
                self.table, self.trials(norm), self.settings, self.bounds, self.divergence()
            )
            seconds = time.perf_counter() - start
            ranks = {name: share.ranks for name, share in shares.items() if share.ranks}
            row = self.row("budget", norm, ranks) | {"seconds": round(seconds, 1)}
            row["rank_correlation"] = round(self.correlation(norm), 3)
            print(f"  chosen in {seconds:.1f} s, correlation {row['rank_correlation']}", flush=True)
            yield row

    def row(self, rule: str, norm: str, ranks: Ranks) -> dict[str, Any]:
        # As in the pipeline, layers stay dense if their factors would be more expensive.
        more_expensive = {
            layer.name
            for layer, method, _ in self.taken
            if layer.name in ranks
            and cost_of(layer, method, ranks[layer.name], "macs") >= layer.dense_macs
        }
        ranks = {
            name: layer_ranks for name, layer_ranks in ranks.items() if name not in more_expensive
        }
        small = self.compressed(ranks, norm)
        row = {
            "rule": rule,
            "norm": norm,
            "macs_ratio": round(1 / self.share_of_macs(ranks), 2),
            "top1_percent": round(value_of(TASK, small, self.data.test, self.spec), 2),
        }
        if self.options.finetune and norm == "activation":
            self.finetune(small)
            row["finetuned_percent"] = round(value_of(TASK, small, self.data.test, self.spec), 2)
        print(row, flush=True)
        return row | {"ranks": {name: list(layer_ranks) for name, layer_ranks in ranks.items()}}

    def finetune(self, small: nn.Module) -> None:
        """Fine-tune with the recipe of params.yaml."""
        recipe = load_params(ROOT / "params.yaml").finetune_of(self.spec.name, "macs_budget")
        teacher = (
            PlainTeacher(Answers(self.answers), recipe.distill, len(self.data.train))
            if recipe.distill.weight
            else None
        )
        train(
            TASK,
            small,
            self.spec,
            self.data,
            recipe.of_round(1, 1),
            teacher=teacher,
            say=lambda _: None,
        )

    @cached_property
    def answers(self) -> Tensor:
        """Logits of the original for unaugmented training images, (images, outputs)."""
        outputs = outputs_of(self.network, self.data.train, self.spec)
        return torch.cat([batch.float() for batch, _ in outputs])

    @property
    def settings(self) -> BudgetSettings:
        return BudgetSettings(select="budget", target={"macs": self.target})

    @cached_property
    def moments(self) -> dict[str, Moments]:
        """Moments of the layers' inputs, over training images."""
        images = inputs(self.data.train.sample(self.options.images), self.spec)
        return input_moments(self.network, [layer for layer, _, _ in self.taken], images)

    def moments_of(self, name: str, norm: str) -> Moments | None:
        return self.moments[name] if norm == "activation" else None

    @property
    def bounds(self) -> list[Bound]:
        return bounds_of(self.settings, {})

    def compressed(self, ranks: Ranks, norm: str) -> nn.Module:
        small = copy.deepcopy(self.network)
        for layer, method, _ in self.taken:
            if (chosen := ranks.get(name := layer.name)) is None:
                continue
            moments = self.moments_of(name, norm)
            factors = decompose(method, layer, self.weight(name), None, chosen, moments)
            put_factors(small, name, factors.sequence, factors.tensors, source=name)
        return small

    def weight(self, name: str) -> np.ndarray:
        weight = self.network.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        return weight.detach().numpy()

    def by_rule(self, **settings: Any) -> Ranks:
        planned = [
            choose_ranks(layer, self.weight(layer.name), method, settings)
            for layer, method, _ in self.taken
        ]
        return {
            layer_plan.name: layer_plan.ranks for layer_plan in planned if not layer_plan.is_dense
        }

    def share_of_macs(self, ranks: Ranks) -> float:
        total = sum(layer.dense_macs for layer in self.table.layers)
        saved = sum(
            max(layer.dense_macs - cost_of(layer, method, ranks[layer.name], "macs"), 0)
            for layer, method, _ in self.taken
            if layer.name in ranks
        )
        return 1 - saved / total

    def searched(self, ranks_at: Callable[[float], Ranks], low: float, high: float) -> Ranks:
        """Return the ranks at the largest value that meets the target. Larger values cost more."""
        for _ in range(14):
            middle = (low + high) / 2
            if self.share_of_macs(ranks_at(middle)) <= self.target:
                low = middle
            else:
                high = middle
        return ranks_at(low)

    def scaled(self, ranks: Ranks) -> Ranks:
        full = {layer.name: full for layer, _, full in self.taken}

        def at(scale: float) -> Ranks:
            return {
                name: tuple(
                    min(max(round(scale * rank), 1), largest)
                    for rank, largest in zip(layer_ranks, full[name], strict=True)
                )
                for name, layer_ranks in ranks.items()
            }

        return self.searched(at, 0.02, 8.0)

    def by_sensitivity(self) -> Ranks:
        def replacements() -> Iterator[tuple[str, Decomposition]]:
            for layer, method, full in self.taken:
                limit = layer.dense_macs * self.target
                ranks = ranks_within(layer, method, full, limit=limit, cost="macs")
                yield layer.name, decompose(method, layer, self.weight(layer.name), None, ranks)

        losses = losses_by_layer(
            TASK, self.network, self.spec, self.validation, replacements(), say=lambda _: None
        )

        def at(share: float) -> Ranks:
            rule = SensitivitySettings(select="sensitivity", ratio=1 / share)
            return shared_out(self.taken, losses, rule)[1]

        return self.searched(at, 0.01, 0.99)

    def trials(self, norm: str) -> list[Callable[[], Trial]]:
        def read(layer: Layer, method: Factorization, full: tuple[int, ...]) -> Trial:
            candidate = Candidate(layer, self.weight(layer.name), method, full)
            return Trial(candidate, None, self.moments_of(layer.name, norm))

        return [partial(read, *entry) for entry in self.taken]

    def divergence(self) -> Divergence:
        batches = partial(inputs, self.validation, self.spec)
        return Divergence(self.network, batches, TASK.divergence)

    def curves(self, norm: str) -> Iterator[tuple[Curve, np.ndarray]]:
        """Yield the curve of each layer and the expected loss of each of its choices of ranks."""
        measured = self.divergence()
        for read in self.trials(norm):
            trial = read()
            if curve := curve_of(trial.candidate, self.settings, self.bounds, trial.moments):
                ranks = curve.trials(self.bounds[0], self.bounds[0].share)
                losses = measured(trial.at(trial_ranks) for trial_ranks in ranks)
                yield curve, curve.losses(dict(zip(ranks, losses, strict=True)))

    def correlation(self, norm: str) -> float:
        """Return the rank correlation of expected and measured losses for random ranks."""
        generator = np.random.default_rng(0)
        curves, expected, measured = list(self.curves(norm)), [], []
        with torch.no_grad():
            before = torch.cat([b for b, _ in outputs_of(self.network, self.validation, self.spec)])
            before = before.log_softmax(1)
            for _ in range(self.options.held_out):
                # The savings of the layers of a network are between half and twice a mean saving.
                mean_share = self.target * 4 ** generator.uniform(-0.5, 0.5)
                ranks, loss = {}, 0.0
                for curve, losses in curves:
                    macs = curve.layer.dense_macs * mean_share * 4 ** generator.uniform(-0.5, 0.5)
                    index = int(np.abs(np.log(curve.costs[:, 0] / macs)).argmin())
                    ranks[curve.layer.name] = curve.ranks[index]
                    loss += losses[index]
                small = self.compressed(ranks, norm)
                after = torch.cat(
                    [b for b, _ in outputs_of(small, self.validation, self.spec)]
                ).log_softmax(1)
                expected.append(loss)
                measured.append(
                    float(
                        nn.functional.kl_div(after, before, reduction="batchmean", log_target=True)
                    )
                )
        return float(spearmanr(expected, measured).statistic)


if __name__ == "__main__":
    main()
