"""The proof that an ONNX file computes what the network in PyTorch did."""

import os

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import nn

from lowrank.errors import UserError
from lowrank.networks.export import inference_copy
from lowrank.networks.registry import NetworkSpec
from lowrank.training.batches import to_input
from lowrank.training.datasets import Split

# Rounding alone stays well below these on trained networks.
LARGEST_ERROR = 1e-3
SMALLEST_AGREEMENT_PERCENT = 99.9

_BATCH_SIZE = 250


def compare_with_pytorch(
    path: str | os.PathLike, network: nn.Module, split: Split, spec: NetworkSpec, *, threads: int
) -> dict[str, float | int]:
    """Run an ONNX file and the network it came from over a whole split, in float32 on the CPU.

    Returns
    -------
    dict
        `max_abs_error` of the logits, `same_top1_percent` (images for which both name the same
        class), `accuracy_percent` (top-1 of the ONNX file), `images` (how many there were).

    Raises
    ------
    UserError
        When an error is above 1e-3 or fewer than 99.9 % of the images get the same class.
    """
    exported = _open(path, threads)
    frozen = inference_copy(network)
    errors, same, correct = [], 0, 0
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for start in range(0, len(split), _BATCH_SIZE):
            rows = split.rows[start : start + _BATCH_SIZE]
            images = to_input(split.images[rows], spec).contiguous()
            with torch.inference_mode():
                expected = frozen(images).numpy()
            found = exported.run(["logits"], {"images": images.numpy()})[0]
            errors.append(_largest_difference(found, expected))
            classes = found.argmax(1)
            same += int((classes == expected.argmax(1)).sum())
            correct += int((classes == split.labels[rows]).sum())
    finally:
        torch.set_num_threads(threads_before)
    result = {
        "max_abs_error": float(np.max(errors)),
        "same_top1_percent": 100.0 * same / len(split),
        "accuracy_percent": 100.0 * correct / len(split),
        "images": len(split),
    }
    _require_agreement(path, result)
    return result


def _open(path: str | os.PathLike, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"]
    )


def _largest_difference(found: NDArray[np.float32], expected: NDArray[np.float32]) -> np.float32:
    """Find the largest absolute one; infinite, not NaN, where a side is not a number."""
    return np.nan_to_num(np.abs(found - expected), nan=np.inf, posinf=np.inf).max()


def _require_agreement(path: str | os.PathLike, result: dict[str, float | int]) -> None:
    error, same = result["max_abs_error"], result["same_top1_percent"]
    if error > LARGEST_ERROR or same < SMALLEST_AGREEMENT_PERCENT:
        raise UserError(
            f"{path}: does not compute what the network in PyTorch does: over {result['images']} "
            f"images its logits differ by up to {error:.3g} (at most {LARGEST_ERROR:g} expected) "
            f"and {same:.2f} % get the same class (at least {SMALLEST_AGREEMENT_PERCENT:g} % "
            "expected). Delete the file and export it again; if it stays so, the network uses an "
            "operator that ONNX Runtime computes differently."
        )
