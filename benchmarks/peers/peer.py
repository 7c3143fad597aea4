"""What the programs of all tools share: the network, the images, the target and the files.

Such a program runs in the environment of its tool, where `lowrank` is not installed. It compresses
one network in several ways that the tool documents, keeps the best, and writes ONNX files and
`networks.json` into its folder.
"""

import argparse
import copy
import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxscript.optimizer
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.append(str(Path(__file__).parents[1]))
import keras_resnet50

BATCH = 25
OPSET = 18
SHAPE = (3, 224, 224)
# Constants that the exporter leaves as a computation, such as a kernel from its factors, are folded
# up to this number of elements.
_LARGEST_CONSTANT = 2**26
_HALVINGS = 8
_NEARLY = 0.997


@dataclass(frozen=True)
class Trial:
    """A compressed network, the settings that led to it, and what it cost."""

    settings: str
    network: nn.Module
    cost: "Cost"


@dataclass(frozen=True)
class Cost:
    """Seconds, and seconds of the processor, of which there are more with more threads."""

    seconds: float
    processor_seconds: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.seconds + other.seconds, self.processor_seconds + other.processor_seconds)


class Clock:
    """Measures a cost from its creation."""

    def __init__(self) -> None:
        self._started, self._processor = time.perf_counter(), time.process_time()

    def cost(self) -> Cost:
        """Return the cost until now."""
        return Cost(time.perf_counter() - self._started, time.process_time() - self._processor)


class Work:
    """The work of one program: its arguments, the images for calibration, and its results.

    Attributes
    ----------
    folder
        Folder for the results.
    original
        ONNX file of the original network, with batch normalizations folded.
    images
        Images for calibration, (N, 3, 224, 224), as the network expects them.
    network
        The original network, in evaluation mode.
    limit
        Largest number of MACs of a compressed network.
    """

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("folder", type=Path)
        parser.add_argument("--original", type=Path, required=True)
        parser.add_argument("--images", type=Path, required=True, help="a file of NumPy")
        parser.add_argument("--macs", type=float, required=True, help="share of the original's")
        parser.add_argument("--threads", type=int, required=True)
        options = parser.parse_args()
        torch.set_num_threads(options.threads)
        self.folder, self.original = options.folder, options.original
        self.images = torch.from_numpy(np.load(options.images))
        self.network = keras_resnet50.trained()
        self.limit = options.macs * macs(self.network)
        self._networks: list[dict[str, Any]] = []

    def copy(self) -> nn.Module:
        """Return a copy of the original network, in evaluation mode."""
        return copy.deepcopy(self.network)

    def keep_best(self, trials: list[Trial]) -> None:
        """Write the best network as it is, and the best with statistics taken again.

        The best is the one that gives most calibration images the class that the original gives
        them: every fourth image, to save time.
        """
        self._keep_best("as_it_is", trials)
        again = [statistics_again(trial, self.images) for trial in trials]
        self._keep_best("statistics", again)

    def _keep_best(self, name: str, trials: list[Trial]) -> None:
        images = self.images[::4]
        wanted = answers(self.network, images)
        same = {trial.settings: answers(trial.network, images) == wanted for trial in trials}
        tried = {settings: round(100 * float(equal.mean()), 1) for settings, equal in same.items()}
        best = max(trials, key=lambda trial: tried[trial.settings])
        file = self.folder / f"{name}.onnx"
        export(best.network, file)
        self.add(file, name, best.settings, best.cost, tried)

    def add(
        self, file: Path, network: str, settings: str, cost: Cost, tried: dict[str, float]
    ) -> None:
        """Add a file to `networks.json`. `tried` has the percentage of each way by its settings."""
        record = {
            "file": file.name,
            "network": network,
            "settings": settings,
            "seconds": round(cost.seconds, 1),
            "processor_seconds": round(cost.processor_seconds, 1),
            "tried": tried,
        }
        print(record, flush=True)
        self._networks.append(record)
        text = json.dumps(self._networks, indent=2)
        (self.folder / "networks.json").write_text(text + "\n")


def timed(settings: str, build: Callable[[], nn.Module]) -> Trial:
    """Return the network that a function builds, and what that cost."""
    clock = Clock()
    network = build()
    return Trial(settings, network.eval(), clock.cost())


def largest_within(limit: float, build: Callable[[float], nn.Module]) -> float:
    """Return a setting whose network has at most these MACs, and nearly so many, by bisection.

    `build` returns the network for a setting between 0 and 1. Its MACs grow with the setting.
    """
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        counted = macs(build(middle))
        low, high = (middle, high) if counted <= limit else (low, middle)
        if _NEARLY * limit <= counted <= limit:
            break
    return low


def macs(network: nn.Module) -> int:
    """Return the multiply-accumulates for one image."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network(torch.zeros(1, *SHAPE))
    return counter.get_total_flops() // 2


def answers(network: nn.Module, images: Tensor) -> np.ndarray:
    """Return the class of each image."""
    with torch.inference_mode():
        return torch.cat([network(batch) for batch in images.split(BATCH)]).argmax(1).numpy()


def statistics_again(trial: Trial, images: Tensor) -> Trial:
    """Return a copy whose batch normalizations have the means and variances of these images."""
    clock = Clock()
    network = copy.deepcopy(trial.network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # The mean over all batches.
            module.train()
    with torch.no_grad():
        for batch in images.split(2 * BATCH):
            network(batch)
    return Trial(trial.settings, network.eval(), trial.cost + clock.cost())


def export(network: nn.Module, file: Path) -> None:
    """Write a network for any batch size."""
    # Kernels in channels-last order, which decompositions can leave behind, make the exporter write
    # pooling as a gather of unknown shape. `contiguous` does not change 1 x 1 kernels.
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = torch.empty(tensor.shape, dtype=tensor.dtype).copy_(tensor.data)
    program = torch.onnx.export(
        network,
        (torch.zeros(2, *SHAPE),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["images"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None
    onnxscript.optimizer.optimize(
        program.model, input_size_limit=_LARGEST_CONSTANT, output_size_limit=_LARGEST_CONSTANT
    )
    program.save(file, external_data=False)
