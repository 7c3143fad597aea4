"""What precision, memory order and the C library's allocator cost in training.

The reason for `precision: auto`, for channels last, and for `reuse_memory`.

    python benchmarks/training_speed.py [--threads 2] [--repeats 5]

Every combination trains the same network for a few steps, turn about, on random images; the table
shows medians in milliseconds an image and the ratio to float32 in PyTorch's own memory order.
"""

import argparse
import ctypes
import itertools
import json
import os
import platform
import statistics
import time
from pathlib import Path

import torch
from torch.nn import functional

from lowrank.networks import create_network, network_spec
from lowrank.networks.states import read_state
from lowrank.steps.common import reuse_memory

RESULTS = Path(__file__).parent / "results" / "training_speed.json"
BATCH_SIZE = 128
STEPS = 4
COMPRESSED = Path("build/vgg16/tucker/rounds/1/model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    networks = {
        "vgg16": lambda: create_network("vgg16"),
        "resnet20": lambda: create_network("resnet20"),
    }
    if COMPRESSED.exists():
        networks["vgg16, compressed"] = lambda: read_state(COMPRESSED).network
    report = {
        "threads": options.threads,
        "batch_size": BATCH_SIZE,
        "load_average": round(os.getloadavg()[0], 2),
        "torch": torch.__version__,
        "processor": platform.machine(),
        "milliseconds_per_image": {
            name: measure(build, options.repeats) for name, build in networks.items()
        },
    }
    for name, times in report["milliseconds_per_image"].items():
        for combination, milliseconds in times.items():
            ratio = times["float32, contiguous"] / milliseconds
            print(f"{name:20} {combination:28} {milliseconds:7.3f} ms {ratio:6.2f}x")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


def measure(build, repeats: int) -> dict[str, float]:
    """Median milliseconds an image of each combination."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    precisions = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    runs = {
        f"{precision}, {order}": trainer(build(), precisions[precision], formats[order])
        for precision, order in itertools.product(precisions, formats)
    }
    fastest = runs["bfloat16, channels_last"]
    runs["the same, memory not reused"] = fastest
    times = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, run in runs.items():
            allocate_as_glibc_does() if name.endswith("not reused") else reuse_memory()
            started = time.perf_counter()
            run()
            times[name].append(1e3 * (time.perf_counter() - started) / STEPS / BATCH_SIZE)
    # The first round fills caches.
    return {name: statistics.median(each[1:]) for name, each in times.items()}


def allocate_as_glibc_does() -> None:
    """Undo `reuse_memory`: M_MMAP_MAX and M_TRIM_THRESHOLD as in glibc's malloc.h."""
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-4, 65536)
    mallopt(-1, 128 * 1024)


def trainer(network, precision: torch.dtype, order: torch.memory_format):
    """A function that trains a few steps."""
    network.train().to(memory_format=order)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    images = torch.randn(BATCH_SIZE, *network_spec("vgg16").input_shape).to(memory_format=order)
    labels = torch.randint(0, 10, (BATCH_SIZE,))

    def run() -> None:
        for _ in range(STEPS):
            with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
                logits = network(images)
            functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


if __name__ == "__main__":
    main()
