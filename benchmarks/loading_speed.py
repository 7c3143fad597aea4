"""Measure the speed of loading training images against torchvision, and the gain of prefetching.

    python benchmarks/loading_speed.py [--images 512] [--repeats 5]

A folder of synthetic photographs (JPEG, 500 x 375) is read for training at 224 x 224 (random crop,
resize, flip, normalization). Two threads of this package alternate with two processes of
torchvision's ImageFolder and PyTorch's DataLoader. The first table shows medians over epochs. The
second table shows the training of ResNet-20 on 32 x 32 images, with batches made ahead or on
demand.
"""

import argparse
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import transforms

from lowrank.config.dataset import DatasetSettings
from lowrank.config.training import Augmentation
from lowrank.core.background import in_background
from lowrank.data.batches import AugmentedBatches
from lowrank.data.datasets import Split, open_dataset
from lowrank.data.folders import store_folders
from lowrank.zoo import NetworkSpec, create_network, network_spec

RESULTS = Path(__file__).parent / "results" / "loading_speed.json"
WORKERS = 2
CLASSES = 4
BATCH_SIZE = 64
SHARES = (0.35, 1.0)
SPEC = NetworkSpec(
    "any", (3, 224, 224), CLASSES, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), resize=256
)
STEPS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(WORKERS)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_photographs(root / "train", options.images)
        write_photographs(root / "val", 2 * CLASSES)
        loaders = {
            "decoded images stored": ours(root, cache_gib=8.0),
            "from the files": ours(root, cache_gib=0.0),
            "torchvision and DataLoader": theirs(root / "train"),
        }
        rates = alternate(loaders, options.repeats, count_images)
    seconds = alternate(
        {"ahead": trainer(ahead=True), "when asked for": trainer(ahead=False)},
        options.repeats,
        lambda run: run(),
    )
    report = {
        "workers": WORKERS,
        "images": options.images,
        "batch_size": BATCH_SIZE,
        "load_average": round(os.getloadavg()[0], 2),
        "versions": {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pillow": PIL.__version__,
        },
        "processor": platform.machine(),
        "images_per_second": {
            name: round(1 / seconds_each, 1) for name, seconds_each in rates.items()
        },
        "resnet20_milliseconds_per_step": {
            name: round(1e3 * seconds_each, 2) for name, seconds_each in seconds.items()
        },
    }
    for table in ("images_per_second", "resnet20_milliseconds_per_step"):
        for name, value in report[table].items():
            print(f"{table:32} {name:28} {value:8.1f}")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


def write_photographs(root: Path, count: int) -> None:
    """Write smooth images with grain, with about the file size of real photographs."""
    random = np.random.default_rng(0)
    for number in range(count):
        folder = root / f"class{number % CLASSES}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC))
        grainy = smooth + random.normal(0, 12, (375, 500, 1))
        image = Image.fromarray(grainy.clip(0, 255).astype(np.uint8))
        image.save(folder / f"{number:05}.jpg", quality=90)


def ours(root: Path, cache_gib: float) -> Callable[[], Iterable]:
    """Return a function whose calls return successive epochs of this package's batches."""
    settings = DatasetSettings(
        kind="imagefolder",
        train=str(root / "train"),
        validation=str(root / "val"),
        cache_gib=cache_gib,
    )
    store_folders(root / f"stored{cache_gib}", "photographs", settings, lambda line: None)
    split = open_dataset(root / f"stored{cache_gib}").train
    augment = Augmentation(resized_crop=SHARES)
    batches = AugmentedBatches(split, SPEC, batch_size=BATCH_SIZE, augment=augment, seed=0)
    epochs = itertools.count()

    def epoch() -> Iterable:
        start = next(epochs) * batches.batches_per_epoch
        steps = range(start, start + batches.batches_per_epoch)
        return in_background(batches.__getitem__, steps, WORKERS)

    return epoch


def theirs(root: Path) -> Callable[[], Iterable]:
    """Return a function that returns an epoch of a plain torchvision pipeline."""
    convert = transforms.Compose(
        [
            transforms.RandomResizedCrop(224, scale=SHARES),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(SPEC.mean, SPEC.std),
        ]
    )
    loader = DataLoader(
        torchvision.datasets.ImageFolder(root, convert),
        BATCH_SIZE,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
        persistent_workers=True,
    )
    return lambda: loader


def count_images(epoch: Callable[[], Iterable]) -> int:
    return sum(len(labels) for _, labels in epoch())


def trainer(ahead: bool) -> Callable[[], int]:
    """Return a function that trains ResNet-20 for a few steps and returns their number."""
    spec, network = network_spec("resnet20"), create_network("resnet20")
    network.train().to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    images = np.random.default_rng(0).integers(0, 256, (10_000, 32, 32, 3), np.uint8)
    split = Split(images, np.arange(10_000) % 10, np.arange(10_000))
    batches = AugmentedBatches(split, spec, batch_size=128, augment=Augmentation(), seed=0)

    def run() -> int:
        on_demand = (batches[step] for step in range(STEPS))
        for inputs, labels in (
            in_background(batches.__getitem__, range(STEPS), WORKERS) if ahead else on_demand
        ):
            functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        return STEPS

    return run


def alternate(
    runs: dict[str, Callable], repeats: int, measure: Callable[[Callable], int]
) -> dict[str, float]:
    """Alternate between runs and return the median seconds per item that `measure` counts."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            count = measure(run)
            times[name].append((time.perf_counter() - started) / count)
    # The first round fills caches and starts processes.
    return {name: statistics.median(times_of_run[1:]) for name, times_of_run in times.items()}


if __name__ == "__main__":
    main()
