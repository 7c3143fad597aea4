"""What an ONNX file computes: the same as the network in PyTorch, and how accurately."""

import os
from collections.abc import Iterator

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lowrank.core.progress import Progress
from lowrank.data.background import in_background
from lowrank.data.batches import EvaluationBatches
from lowrank.data.datasets import Split
from lowrank.errors import UserError
from lowrank.onnx_files.export import inference_copy
from lowrank.tasks.classification import Hits
from lowrank.zoo.registry import NetworkSpec

# Rounding alone stays well below these on trained networks. The error is relative to the range of
# the logits, which differs between networks by orders of magnitude.
LARGEST_RELATIVE_ERROR = 1e-3
SMALLEST_AGREEMENT_PERCENT = 99.9


def compare_with_pytorch(
    path: str | os.PathLike, network: nn.Module, split: Split, spec: NetworkSpec, *, threads: int
) -> dict[str, float | int]:
    """Run an ONNX file and the network it came from over the same images, in float32 on the CPU.

    Returns
    -------
    dict
        `max_abs_error` of the logits, `relative_error` (the same over the range of PyTorch's
        logits, from the smallest to the largest of all images), `same_top1_percent` (images for
        which both name the same class), `images` (how many there were).

    Raises
    ------
    UserError
        When the relative error is above 1e-3 or fewer than 99.9 % of the images get the same
        class.
    """
    frozen = inference_copy(network)
    errors, lowest, highest, same = [], [], [], 0
    threads_before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for inputs, _, found in _outputs(path, split, spec, threads):
            with torch.inference_mode():
                expected = frozen(inputs).numpy()
            errors.append(_largest_difference(found, expected))
            lowest.append(expected.min())
            highest.append(expected.max())
            classes = (split.of_classes(logits).argmax(1) for logits in (found, expected))
            same += int(np.equal(*classes).sum())
    finally:
        torch.set_num_threads(threads_before)
    result = {
        "max_abs_error": float(np.max(errors)),
        "relative_error": _relative(np.max(errors), np.max(highest) - np.min(lowest)),
        "same_top1_percent": 100.0 * same / len(split),
        "images": len(split),
    }
    _require_agreement(path, result)
    return result


def exported_percent(
    path: str | os.PathLike,
    split: Split,
    spec: NetworkSpec,
    *,
    threads: int,
    float_kernels: bool = False,
) -> dict[str, float]:
    """Accuracy of an ONNX file in percent, in ONNX Runtime on the CPU.

    With `float_kernels` an int8 file is computed in float between its conversions: what another
    processor, whose integer kernels this one has not, should answer.

    Returns
    -------
    dict
        `top1` and, where the split has over ten classes, `top5`.
    """
    split.require_labels("measuring accuracy")
    hits = Hits()
    for _, labels, found in _outputs(path, split, spec, threads, float_kernels):
        hits.add(torch.from_numpy(split.of_classes(found)), labels)
    return hits.percent()


def are_right(
    path: str | os.PathLike,
    split: Split,
    spec: NetworkSpec,
    *,
    threads: int,
    float_kernels: bool = False,
) -> NDArray[np.bool_]:
    """For which images the best guess of an ONNX file is their class, (N,).

    `float_kernels` as for `exported_percent`.
    """
    split.require_labels("measuring accuracy")
    return np.concatenate(
        [
            split.of_classes(found).argmax(1) == labels.numpy()
            for _, labels, found in _outputs(path, split, spec, threads, float_kernels)
        ]
    )


def log_probabilities(
    path: str | os.PathLike,
    split: Split,
    spec: NetworkSpec,
    *,
    threads: int,
    float_kernels: bool = False,
) -> Tensor:
    """The answers of an ONNX file, (N, classes), in ONNX Runtime on the CPU.

    `float_kernels` as for `exported_percent`.
    """
    logits = [
        torch.from_numpy(split.of_classes(found))
        for _, _, found in _outputs(path, split, spec, threads, float_kernels)
    ]
    return torch.cat(logits).log_softmax(1)


def _outputs(
    path: str | os.PathLike,
    split: Split,
    spec: NetworkSpec,
    threads: int,
    float_kernels: bool = False,
) -> Iterator[tuple[Tensor, Tensor, NDArray[np.float32]]]:
    """Images (N, C, H, W), labels (N,) and the file's logits (N, outputs) of each batch."""
    session, batches = _open(path, threads, float_kernels), EvaluationBatches(split, spec)
    progress = Progress(len(split))
    for images, labels in in_background(batches.__getitem__, range(len(batches)), threads):
        inputs = images.contiguous()
        yield inputs, labels, session.run(["logits"], {"images": inputs.numpy()})[0]
        progress.advance(len(labels))


def _open(
    path: str | os.PathLike, threads: int, float_kernels: bool
) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    if float_kernels:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors: what it warns about are its own choices
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
