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
from lowrank.training.background import in_background
from lowrank.training.batches import EvaluationBatches
from lowrank.training.datasets import Split
from lowrank.training.evaluate import Hits

# Rounding alone stays well below these on trained networks. The error is relative to the range of
# the logits, which differs between networks by orders of magnitude.
LARGEST_RELATIVE_ERROR = 1e-3
SMALLEST_AGREEMENT_PERCENT = 99.9


def compare_with_pytorch(
    path: str | os.PathLike, network: nn.Module, split: Split, spec: NetworkSpec, *, threads: int
) -> dict[str, float | int]:
    """Run an ONNX file and the network it came from over a whole split, in float32 on the CPU.

    Returns
    -------
    dict
        `max_abs_error` of the logits, `relative_error` (the same over the range of PyTorch's
        logits, from the smallest to the largest of all images), `same_top1_percent` (images for
        which both name the same class), `accuracy_percent` (top-1 of the ONNX file) and, where
        there are over ten classes, `top5_percent`; `images` (how many there were).

    Raises
    ------
    UserError
        When the relative error is above 1e-3 or fewer than 99.9 % of the images get the same
        class.
    """
    exported = _open(path, threads)
    frozen = inference_copy(network)
    batches, hits = EvaluationBatches(split, spec), Hits()
    errors, lowest, highest, same = [], [], [], 0
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for images, labels in in_background(batches.__getitem__, range(len(batches)), threads):
            inputs = images.contiguous()
            with torch.inference_mode():
                expected = frozen(inputs).numpy()
            found = exported.run(["logits"], {"images": inputs.numpy()})[0]
            errors.append(_largest_difference(found, expected))
            lowest.append(expected.min())
            highest.append(expected.max())
            classes = split.of_classes(found)
            same += int((classes.argmax(1) == split.of_classes(expected).argmax(1)).sum())
            hits.add(torch.from_numpy(classes), labels)
    finally:
        torch.set_num_threads(threads_before)
    accuracy = hits.percent()
    result = {
        "max_abs_error": float(np.max(errors)),
        "relative_error": _relative(np.max(errors), np.max(highest) - np.min(lowest)),
        "same_top1_percent": 100.0 * same / len(split),
        "accuracy_percent": accuracy["top1"],
        **({"top5_percent": accuracy["top5"]} if "top5" in accuracy else {}),
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


def _relative(error: np.float32, of: np.float32) -> float:
    """Zero where there is no error at all, even over a range of zero."""
    if error == 0:
        return 0.0
    return float(error / of) if of > 0 else float("inf")


def _require_agreement(path: str | os.PathLike, result: dict[str, float | int]) -> None:
    error, same = result["relative_error"], result["same_top1_percent"]
    if error > LARGEST_RELATIVE_ERROR or same < SMALLEST_AGREEMENT_PERCENT:
        raise UserError(
            f"{path}: does not compute what the network in PyTorch does: over {result['images']} "
            f"images its logits differ by up to {result['max_abs_error']:.3g}, {error:.3g} of "
            f"their range (at most {LARGEST_RELATIVE_ERROR:g} expected), and {same:.2f} % get the "
            f"same class (at least {SMALLEST_AGREEMENT_PERCENT:g} % expected). Delete the file and "
            "export it again; if it stays so, the network uses an operator that ONNX Runtime "
            "computes differently."
        )
