"""Measure the gain of each change to the start and the recipe of a short fine-tuning of VGG-16.

    python benchmarks/short_finetuning.py [NAME ...] [--precision float32] [--seed 0] [--threads 1]

VGG-16 at the ranks of EVBMF (multiples of 16) is fine-tuned with each recipe in `VARIANTS`. The
accuracy before and after, and the CPU time of the training loop are measured. Rows are added to the
results. A row with the same variant, precision and seed is replaced. Needs the data and the
original's outputs: `snakemake build/vgg16/original/outputs.safetensors`.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

from lowrank.files import read_json, write_json
from lowrank.steps.common import reuse_memory, use_threads

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "short_finetuning.json"

# Augmentations: none; mirrored images; mirrored and slightly translated images.
AS_THEY_ARE = {"augment": {"pad_pixels": 0, "flip": False}}
MIRRORED = {"augment": {"pad_pixels": 0, "flip": True}}
MOVED = {"augment": {"pad_pixels": 2, "flip": True}}
# Only the original's outputs; the same, but computed in each step for the augmented images.
OUTPUTS = {"distill": {"weight": 1.0, "temperature": 4.0}}
FRESH_OUTPUTS = {"distill": {"weight": 1.0, "temperature": 4.0, "images": "augmented"}}
# The original's outputs and the feature maps that `teacher_outputs` stored.
MAPS = {"distill": {"weight": 1.0, "temperature": 4.0, "maps": 3.0}}
LABELS = {"distill": {"weight": 0.0}}
LINEAR = {"schedule": "linear", "average_last": 0.0, "freeze": {"layers": 0.125, "after": 0.0}}
CHEAP = LINEAR | {"freeze": {"layers": 0.28, "after": 0.1}, "learning_rate": 0.01}
BASE: dict[str, Any] = {
    "learning_rate": 0.008,
    "schedule": "constant",
    "average_last": 0.6,
    "distill": {"weight": 0.9, "temperature": 2.0},
    "freeze": {"layers": 0.125, "after": 0.3},
}

# Settings in addition to `select: vbmf` and `multiple_of: 16`.
RANKS: dict[str, dict[str, Any]] = {
    "nearest": {"rounding": "nearest"},
    "up": {"rounding": "up"},
    "up, weakened by 0.05": {"rounding": "up", "weaken": 0.05},
    "up, weakened": {"rounding": "up", "weaken": 0.1},
}

# The ranks, how the factors are made, the number of images for it, and the changes to BASE.
VARIANTS: dict[str, tuple[str, str, int, dict[str, Any]]] = {
    "averaged_600": ("nearest", "activation", 1000, {"steps": 600}),
    "linear_400": ("nearest", "weight", 0, LINEAR | {"steps": 400}),
    "linear_high_400": ("nearest", "weight", 0, LINEAR | {"steps": 400, "learning_rate": 0.02}),
    "sequential_300": (
        "nearest", "sequential", 500, LINEAR | {"steps": 300, "learning_rate": 0.004},
    ),
    "sequential_low_300": (
        "nearest", "sequential", 500, LINEAR | {"steps": 300, "learning_rate": 0.002},
    ),
    "as_they_are_350": ("nearest", "weight", 0, LINEAR | AS_THEY_ARE | {"steps": 350}),
    "outputs_350": ("nearest", "weight", 0, LINEAR | AS_THEY_ARE | OUTPUTS | {"steps": 350}),
    "outputs_sequential_350": (
        "nearest", "sequential", 500,
        LINEAR | AS_THEY_ARE | OUTPUTS | {"steps": 350, "learning_rate": 0.006},
    ),
    "outputs_adamw_350": (
        "nearest", "weight", 0,
        LINEAR | AS_THEY_ARE | OUTPUTS
        | {"steps": 350, "optimizer": "adamw", "learning_rate": 5e-4},
    ),
    "outputs_mirrored_700": ("nearest", "weight", 0, CHEAP | MIRRORED | OUTPUTS | {"steps": 700}),
    "labels_1000": (
        "nearest", "weight", 0, CHEAP | LABELS | {"steps": 1000, "learning_rate": 0.008},
    ),
    "labels_smoothed_700": (
        "nearest", "weight", 0, CHEAP | LABELS | {"steps": 700, "label_smoothing": 0.1},
    ),
    "fresh_outputs_220": ("nearest", "weight", 0, CHEAP | FRESH_OUTPUTS | {"steps": 220}),
    "up_mirrored_500": ("up", "weight", 0, CHEAP | MIRRORED | OUTPUTS | {"steps": 500}),
    "up_moved_700": ("up", "weight", 0, CHEAP | MOVED | OUTPUTS | {"steps": 700}),
    "up_mirrored_800": ("up", "weight", 0, CHEAP | MIRRORED | OUTPUTS | {"steps": 800}),
    "up_moved_far_1200": (
        "up", "weight", 0,
        CHEAP | OUTPUTS | {"steps": 1200, "augment": {"pad_pixels": 4, "flip": True}},
    ),
    "maps_700": ("nearest", "weight", 0, CHEAP | AS_THEY_ARE | MAPS | {"steps": 700}),
    "up_maps_700": ("up", "weight", 0, CHEAP | AS_THEY_ARE | MAPS | {"steps": 700}),
    "weakened_little_maps_700": (
        "up, weakened by 0.05", "weight", 0, CHEAP | AS_THEY_ARE | MAPS | {"steps": 700},
    ),
    "weakened_maps_500": (
        "up, weakened", "weight", 0, CHEAP | AS_THEY_ARE | MAPS | {"steps": 500},
    ),
    "weakened_moved_500": ("up, weakened", "weight", 0, CHEAP | MOVED | OUTPUTS | {"steps": 500}),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=[])
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    use_threads(options.threads)
    reuse_memory()
    rows = read_json(RESULTS)["rows"] if RESULTS.exists() else []
    for name in options.names or VARIANTS:
        row = measure(name, options)
        print(row, flush=True)
        key = ("name", "precision", "seed")
        rows = [other for other in rows if any(other[part] != row[part] for part in key)]
        write_json(RESULTS, {"rows": [*rows, row]})
        rows.append(row)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the accuracy before and after one recipe, and its CPU time."""
    import torch

    import lowrank
    from lowrank.config.finetune import RoundSettings
    from lowrank.config.network_source import NetworkSource
    from lowrank.data.batches import EvaluationBatches
    from lowrank.data.datasets import open_dataset
    from lowrank.evaluation.network import measure_splits, values_by_split
    from lowrank.surgery.states import read_state
    from lowrank.tasks import get_task
    from lowrank.training.distillation import PlainTeacher, read_outputs
    from lowrank.training.loop import train

    torch.set_num_threads(options.threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    ranks, way, images, changes = VARIANTS[name]
    recipe = RoundSettings.model_validate(
        BASE | changes | {"precision": options.precision, "seed": options.seed}
    )
    original = read_state(
        ROOT / "build/vgg16/original/model.safetensors", NetworkSource.parse("vgg16")
    )
    data = open_dataset(ROOT / "data/datasets/cifar10")
    batches = EvaluationBatches(data.train.sample(max(1, images)), original.spec)
    small = lowrank.compress(
        original.network,
        original.spec.input_shape,
        factorize={"first_conv": "tucker1", "conv": "tucker2"},
        ranks={"select": "vbmf", "multiple_of": 16} | RANKS[ranks],
        images=None if way == "weight" else [batches[n][0] for n in range(len(batches))],
        sequential=way == "sequential",
    ).network.eval()
    task = get_task("classification")

    def measured() -> dict[str, float]:
        return values_by_split(task, measure_splits(task, small, data, original.spec))

    before = measured()
    outputs = ROOT / "build/vgg16/original/outputs.safetensors"
    teacher = PlainTeacher(read_outputs(outputs, data.train), recipe.distill, len(data.train))
    start = time.process_time()
    report = train(
        task,
        small,
        original.spec,
        data,
        recipe,
        teacher=teacher if recipe.distill.weight else None,
    )
    return {
        "name": name,
        "precision": options.precision,
        "seed": options.seed,
        "ranks": ranks,
        "start": f"{way} {images}" if images else way,
        "recipe": changes,
        "steps": report.steps,
        "cpu_seconds": round(time.process_time() - start, 1),
        "kernels": os.environ.get("ONEDNN_MAX_CPU_ISA", "default"),
        "before": before,
        "after": measured(),
    }


if __name__ == "__main__":
    main()
