"""Compare functions of TensorLy with the code in `lowrank.factorize` that does the same.

    python benchmarks/tensorly_functions.py [--channels 64 512]

`lowrank.factorize.tensor_algebra` uses a function of TensorLy if it is as fast as plain NumPy and
gives the same bits. Elsewhere `lowrank` keeps its own code. This program shows both: median CPU
times of alternating runs on one thread, for a 3 x 3 kernel with that many input and output
channels.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "tensorly_functions.json"

# Seconds for which one pair of functions runs.
SECONDS = 2.0


def main() -> None:
    options = _options()
    # The linear algebra reads these variables when NumPy is imported, so NumPy is imported later.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = "1"
    rows = []
    for channels in options.channels:
        for name, (used, ours, theirs) in pairs(channels).items():
            rows.append({"function": name, "channels": channels, "used": used})
            rows[-1] |= compare(ours, theirs)
            _print(rows[-1])
    report = {
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "import_cpu_seconds": import_seconds("tensorly") - import_seconds("numpy"),
        "rows": rows,
    }
    print(f"import of TensorLy after NumPy: {report['import_cpu_seconds']:.2f} CPU s")
    RESULTS.write_text(json.dumps(report, indent=2) + "\n")


def pairs(channels: int) -> dict[str, tuple[bool, Callable[[], Any], Callable[[], Any]]]:
    """Return by name: whether `lowrank` uses TensorLy, the NumPy code, and TensorLy's function."""
    import numpy as np
    from tensorly import cp_to_tensor, tt_to_tensor
    from tensorly.base import matricize, unfold
    from tensorly.tenalg.core_tenalg import (
        khatri_rao,
        mode_dot,
        multi_mode_dot,
        unfolding_dot_khatri_rao,
    )

    from lowrank.core.layers import PlainLayer
    from lowrank.factorize import get_factorization, reconstruct

    generator = np.random.default_rng(0)
    random = generator.standard_normal
    rank = channels // 3
    layer = PlainLayer(channels, channels, kernel=(3, 3))
    kernel, vectors = random(layer.weight_shape), random((channels, rank))
    by_input = unfold(kernel, 1)
    heights, widths = random((3, rank)), random((3, rank))
    terms = [random((size, rank)) for size in (channels, channels, 9)]
    taps = kernel.reshape(channels, channels, 9).transpose(2, 0, 1).copy()

    def weights(name: str, ranks: tuple[int, ...]) -> tuple[Any, list[Any]]:
        sequence = get_factorization(name).sequence(layer, ranks)
        return sequence, [random(plain.weight_shape).astype(np.float32) for plain in sequence]

    cp, (cp_inputs, cp_windows, cp_outputs) = weights("cp_als", (rank,))
    tucker, (inputs, core, outputs) = weights("tucker2", (rank, rank))
    train, cores = weights("tensor_train", (rank,) * 3)

    def least_squares_targets() -> Any:
        """Compute the targets of one sweep of `least_squares_terms`, which shares two products."""
        projected = taps @ terms[1]
        target = np.einsum("kcr,kr->cr", projected, terms[2])
        windows = np.einsum("kcr,cr->kr", projected, terms[0])
        projected = taps.swapaxes(1, 2) @ terms[0]
        return target, np.einsum("kcr,kr->cr", projected, terms[2]), windows

    return {
        "unfold": (
            True,
            lambda: kernel.swapaxes(0, 1).reshape(channels, -1),
            lambda: unfold(kernel, 1),
        ),
        "matricize": (
            True,
            lambda: kernel.transpose(1, 2, 0, 3).reshape(3 * channels, -1),
            lambda: matricize(kernel, (1, 2), (0, 3)),
        ),
        "mode_dot": (
            True,
            lambda: np.einsum("tskl,sr->trkl", kernel, vectors, optimize=True),
            lambda: mode_dot(kernel, vectors, 1, transpose=True),
        ),
        "mode_dot, unfolding known": (
            False,
            lambda: vectors.T @ by_input,
            lambda: mode_dot(kernel, vectors, 1, transpose=True),
        ),
        "khatri_rao of windows": (
            False,
            lambda: (heights[:, None] * widths[None]).reshape(-1, rank),
            lambda: khatri_rao([heights, widths]),
        ),
        "unfolding_dot_khatri_rao": (
            False,
            least_squares_targets,
            lambda: [
                unfolding_dot_khatri_rao(kernel.reshape(channels, channels, 9), (None, terms), mode)
                for mode in range(3)
            ],
        ),
        "cp_to_tensor": (
            False,
            lambda: reconstruct(cp, [cp_inputs, cp_windows, cp_outputs]),
            lambda: cp_to_tensor(
                (
                    None,
                    [
                        cp_outputs[:, :, 0, 0],
                        cp_inputs[:, :, 0, 0].T,
                        cp_windows.reshape(rank, -1).T,
                    ],
                )
            ),
        ),
        "tucker_to_tensor": (
            False,
            lambda: reconstruct(tucker, [inputs, core, outputs]),
            lambda: multi_mode_dot(core, [outputs[:, :, 0, 0], inputs[:, :, 0, 0].T], modes=[0, 1]),
        ),
        "tt_to_tensor": (
            False,
            lambda: reconstruct(train, cores),
            lambda: tt_to_tensor(
                [
                    cores[0][:, :, 0, 0].T[None],
                    cores[1][..., 0].transpose(1, 2, 0),
                    cores[2][:, :, 0].transpose(1, 2, 0),
                    cores[3][:, :, 0, 0].T[..., None],
                ]
            ).transpose(3, 0, 1, 2),
        ),
    }


def compare(ours: Callable[[], Any], theirs: Callable[[], Any]) -> dict[str, Any]:
    """Return the median CPU microseconds of both functions, and their ratio."""
    seconds: tuple[list[float], list[float]] = ([], [])
    ours(), theirs()
    end = time.process_time() + SECONDS
    while time.process_time() < end or len(seconds[0]) < 5:
        for function, times in zip((ours, theirs), seconds, strict=True):
            start = time.process_time()
            function()
            times.append(time.process_time() - start)
    medians = [1e6 * statistics.median(times) for times in seconds]
    return {
        "numpy_us": medians[0],
        "tensorly_us": medians[1],
        "ratio": medians[1] / medians[0],
    }


def import_seconds(module: str) -> float:
    """Return the median CPU seconds of a process that only imports a module."""
    seconds = []
    for _ in range(5):
        start = sum(os.times()[2:4])
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        seconds.append(sum(os.times()[2:4]) - start)
    return statistics.median(seconds)


def _print(row: dict[str, Any]) -> None:
    print(
        f"{row['function']:28} {row['channels']:4} channels: NumPy {row['numpy_us']:9.0f} us, "
        f"TensorLy {row['tensorly_us']:9.0f} us, ratio {row['ratio']:5.2f}"
        f"{', used' if row['used'] else ''}",
        flush=True,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--channels", type=int, nargs="+", default=[64, 512])
    return parser.parse_args()


if __name__ == "__main__":
    main()
