"""Compare the speed of Tucker-2 with TensorLy, alternating in one process, and measure ranks.

    python benchmarks/tucker_speed.py [--kernel checkpoint.safetensors tensor-name]

TensorLy's `partial_tucker` runs with its defaults (SVD start, 100 sweeps at most, tolerance 1e-4).
The time for choosing EVBMF ranks is measured as well. Times are CPU seconds. With one thread, they
equal the elapsed time on an idle machine, and a busy machine affects them little.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "tucker_speed.json"

# Output and input channels of VGG-16's convolutions, all 3 x 3.
VGG16 = [
    (64, 3), (64, 64), (128, 64), (128, 128), (256, 128), (256, 256), (256, 256),
    (512, 256), (512, 512), (512, 512), (512, 512), (512, 512), (512, 512),
]  # fmt: skip


def main() -> None:
    options = _options()
    # The linear algebra reads these variables when NumPy is imported, so NumPy is imported later.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(options.threads)
    comparisons = {
        name: compare(kernel, tuple(options.ranks), options.repeats)
        for name, kernel in kernels(options.kernel).items()
    }
    report = {
        "ranks": options.ranks,
        "repeats": options.repeats,
        "threads": options.threads,
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "comparisons": comparisons,
        "vgg16_ranks_cpu_seconds": vgg16_rank_seconds(),
        "start_up_cpu_seconds": start_up_seconds(),
    }
    _print(report)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


def kernels(checkpoint: list[str] | None) -> dict[str, Any]:
    """Return the kernels to decompose, float64, (T, S, D_h, D_w), by a name for the table."""
    import numpy as np

    if checkpoint:
        from safetensors.numpy import load_file

        path, name = checkpoint
        return {name: load_file(path)[name].astype(np.float64)}
    noise = np.random.default_rng(0).standard_normal((512, 512, 3, 3)).astype(np.float32)
    # Singular values decrease as k^-0.7 in each channel mode, like those of trained kernels.
    decay = np.arange(1, 513) ** -0.7
    left, right = (
        np.linalg.qr(np.random.default_rng(seed).standard_normal((512, 512)))[0] * decay
        for seed in (1, 2)
    )
    # (T, t) x (t, s, D, D) x (S, s) -> (T, S, D, D)
    decaying = np.einsum("Tt,tsij,Ss->TSij", left, noise, right, optimize=True)
    return {"random": noise.astype(np.float64), "decaying spectrum": decaying}


def compare(kernel: Any, ranks: tuple[int, int], repeats: int) -> dict[str, float]:
    """Return median CPU seconds and relative errors of both, at (input rank, output rank)."""
    import numpy as np
    from tensorly.decomposition import partial_tucker

    from lowrank.factorize import get_factorization

    tucker2 = get_factorization("tucker2")
    norm = float(np.linalg.norm(kernel))

    def relative_error(core: Any) -> float:
        # The other factors are orthonormal, so the error follows from the norm of the core.
        return math.sqrt(max(norm**2 - float(np.linalg.norm(core)) ** 2, 0.0)) / norm

    ours, theirs = [], []
    for _ in range(repeats):
        seconds, (_, core, _) = _timed(lambda: tucker2.factors(kernel, ranks))
        ours.append(seconds)
        seconds, ((reference_core, _), _) = _timed(
            lambda: partial_tucker(kernel, rank=list(ranks[::-1]), modes=[0, 1])
        )
        theirs.append(seconds)
    return {
        "lowrank_cpu_seconds": statistics.median(ours),
        "tensorly_cpu_seconds": statistics.median(theirs),
        "ratio": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
        "lowrank_error": relative_error(core),
        "tensorly_error": relative_error(reference_core),
    }


def vgg16_rank_seconds() -> float:
    """Return the CPU time for the EVBMF ranks of 13 random kernels with VGG-16's shapes, in s."""
    import numpy as np

    from lowrank.factorize import evbmf_rank, get_factorization

    generator = np.random.default_rng(0)
    all_kernels = [
        generator.standard_normal((*shape, 3, 3)).astype(np.float32)
        * np.arange(1, shape[0] + 1)[:, None, None, None] ** -0.7
        for shape in VGG16
    ]
    tucker2 = get_factorization("tucker2")
    return _timed(
        lambda: [
            evbmf_rank(spectrum) for kernel in all_kernels for spectrum in tucker2.spectra(kernel)
        ]
    )[0]


def start_up_seconds() -> float:
    """Return the median CPU time of a process that only imports `lowrank.factorize`, in s."""
    command = [sys.executable, "-c", "import lowrank.factorize"]
    return statistics.median(
        _timed(lambda: subprocess.run(command, check=True))[0] for _ in range(5)
    )


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    """Run an action; return the CPU seconds of this process and its children, and the result."""
    start = sum(os.times()[:4])
    result = action()
    return sum(os.times()[:4]) - start, result


def _print(report: dict[str, Any]) -> None:
    print(f"{'kernel':24} {'lowrank s':>10} {'TensorLy s':>10} {'ratio':>6} {'errors':>18}")
    for name, comparison in report["comparisons"].items():
        print(
            f"{name:24} {comparison['lowrank_cpu_seconds']:10.2f} "
            f"{comparison['tensorly_cpu_seconds']:10.2f} {comparison['ratio']:6.1f} "
            f"{comparison['lowrank_error']:9.5f}{comparison['tensorly_error']:9.5f}"
        )
    print(f"EVBMF ranks of VGG-16's convolutions: {report['vgg16_ranks_cpu_seconds']:.2f} CPU s")
    print(f"Start-up of lowrank.factorize: {report['start_up_cpu_seconds']:.2f} CPU s")
    print(f"{report['threads']} thread(s), load average {report['load_average']}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kernel", nargs=2, metavar=("FILE", "TENSOR"), help="From safetensors.")
    parser.add_argument("--ranks", nargs=2, type=int, default=[172, 170], help="Input, output.")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="Of the linear algebra.")
    return parser.parse_args()


if __name__ == "__main__":
    main()
