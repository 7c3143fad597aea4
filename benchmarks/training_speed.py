"""Measure how precision, memory format and the C library's allocator affect training speed.

The results are the reason for `precision: auto`, for channels last and for `reuse_memory`.

    python benchmarks/training_speed.py [--threads 2] [--repeats 5]

All combinations alternate. Each trains the same network for a few steps on random images. The table
shows the median in milliseconds per image, and the ratio to float32 in PyTorch's own memory format.
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import platform
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.nn import functional

from lowrank.config.network_source import NetworkSource
from lowrank.steps.common import reuse_memory
from lowrank.surgery.states import read_state
from lowrank.training.hardware import autocast
from lowrank.zoo import create_network, network_spec

RESULTS = Path(__file__).parent / "results" / "training_speed.json"
BATCH_SIZE = 128
STEPS = 4
COMPRESSED = Path("build/vgg16/tucker/rounds/1/model.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    networks = ["vgg16", "resnet20", *(["vgg16, compressed"] if COMPRESSED.exists() else [])]
    load = round(os.getloadavg()[0], 2)
    # Separate processes, because the setting of an allocator cannot be undone.
    with (
        worker(options.threads, reuse=True) as reusing,
        worker(options.threads, reuse=False) as returning,
    ):
        times = {name: measure(reusing, returning, name, options.repeats) for name in networks}
    report = {
        "threads": options.threads,
        "batch_size": BATCH_SIZE,
        "load_average": load,
        "torch": torch.__version__,
        "processor": platform.machine(),
        "milliseconds_per_image": times,
    }
    for name, network_times in times.items():
        for combination, milliseconds in network_times.items():
            ratio = network_times["float32, contiguous"] / milliseconds
            print(f"{name:20} {combination:28} {milliseconds:7.3f} ms {ratio:6.2f}x")
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


def worker(threads: int, *, reuse: bool) -> ProcessPoolExecutor:
    """Start a process for training."""
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(1, spawn, initializer=prepare, initargs=(threads, reuse))


def prepare(threads: int, reuse: bool) -> None:
    torch.set_num_threads(threads)
    if reuse:
        reuse_memory()


def measure(
    reusing: ProcessPoolExecutor, returning: ProcessPoolExecutor, network: str, repeats: int
) -> dict[str, float]:
    """Return the median milliseconds per image of each combination."""
    ways = itertools.product(("float32", "bfloat16"), ("contiguous", "channels_last"))
    runs = {", ".join(way): (reusing, way) for way in ways}
    runs["the same, memory not reused"] = (returning, ("bfloat16", "channels_last"))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats + 1):
        for name, (process, way) in runs.items():
            times[name].append(process.submit(milliseconds_an_image, network, *way).result())
    # The first round fills caches.
    return {name: statistics.median(run_times[1:]) for name, run_times in times.items()}


def milliseconds_an_image(network: str, precision: str, order: str) -> float:
    run = trainer(network, precision, order)
    started = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - started) / STEPS / BATCH_SIZE


def _compressed() -> torch.nn.Module:
    return read_state(COMPRESSED, NetworkSource(network="vgg16")).network


@functools.cache
def trainer(name: str, precision: str, order: str):
    """Return a function that trains a few steps."""
    network = _compressed() if "compressed" in name else create_network(name)
    types = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    memory_format = formats[order]
    network.train().to(memory_format=memory_format)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, nesterov=True)
    images = torch.randn(BATCH_SIZE, *network_spec("vgg16").input_shape).to(
        memory_format=memory_format
    )
    labels = torch.randint(0, 10, (BATCH_SIZE,))

    def run() -> None:
        for _ in range(STEPS):
            with autocast(torch.device("cpu"), types[precision]):
                logits = network(images)
            functional.cross_entropy(logits.float(), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


if __name__ == "__main__":
    main()
