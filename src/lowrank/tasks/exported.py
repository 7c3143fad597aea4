"""Compare an ONNX file with the network in PyTorch, and measure its accuracy."""

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

# Limits for the comparison. For trained networks, rounding errors are far below them. The error is
# relative to the range of the logits, which differs between networks by orders of magnitude.
LARGEST_RELATIVE_ERROR = 1e-3
SMALLEST_AGREEMENT_PERCENT = 99.9


def compare_with_pytorch(
    path: str | os.PathLike, network: nn.Module, split: Split, spec: NetworkSpec, *, threads: int
) -> dict[str, float | int]:
    """Run an ONNX file and its PyTorch network on the same images, in float32 on the CPU.

    Returns
    -------
    dict
        `max_abs_error`, the largest absolute error of the logits; `relative_error`, this error
        divided by the range of PyTorch's logits over all images (largest minus smallest);
        `same_top1_percent`, the share of images with the same top-1 prediction; `images`, the
        number of images.

    Raises
    ------
    UserError
        If the relative error is above 1e-3, or fewer than 99.9 % of the images have the same
        top-1 prediction.
    """
    frozen = inference_copy(network)
    errors, lowest, highest, same = [], [], [], 0
    previous_threads = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for inputs, _, logits in _outputs(path, split, spec, threads):
            with torch.inference_mode():
                expected = frozen(inputs).numpy()
            errors.append(_largest_difference(logits, expected))
            lowest.append(expected.min())
            highest.append(expected.max())
            classes = (split.of_classes(values).argmax(1) for values in (logits, expected))
            same += int(np.equal(*classes).sum())
    finally:
        torch.set_num_threads(previous_threads)
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
    """Return the accuracy of an ONNX file in percent, in ONNX Runtime on the CPU.

    With `float_kernels`, an int8 file runs with float kernels between its conversions. This gives
    the expected outputs on another processor whose integer kernels this processor does not have.

    Returns
    -------
    dict
        `top1` and, for more than ten classes, `top5`.
    """
    split.require_labels("measuring accuracy")
    hits = Hits()
    for _, labels, logits in _outputs(path, split, spec, threads, float_kernels):
        hits.add(torch.from_numpy(split.of_classes(logits)), labels)
    return hits.percent()


def are_right(
    path: str | os.PathLike,
    split: Split,
    spec: NetworkSpec,
    *,
    threads: int,
    float_kernels: bool = False,
) -> NDArray[np.bool_]:
    """Return for each image whether the top-1 prediction of an ONNX file is correct, (N,).

    `float_kernels` has the same meaning as in `exported_percent`.
    """
    split.require_labels("measuring accuracy")
    return np.concatenate(
        [
            split.of_classes(logits).argmax(1) == labels.numpy()
            for _, labels, logits in _outputs(path, split, spec, threads, float_kernels)
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
    """Return the log-probabilities of an ONNX file, (N, classes), in ONNX Runtime on the CPU.

    `float_kernels` has the same meaning as in `exported_percent`.
    """
    batches = [
        torch.from_numpy(split.of_classes(logits))
        for _, _, logits in _outputs(path, split, spec, threads, float_kernels)
    ]
    return torch.cat(batches).log_softmax(1)


def _outputs(
    path: str | os.PathLike,
    split: Split,
    spec: NetworkSpec,
    threads: int,
    float_kernels: bool = False,
) -> Iterator[tuple[Tensor, Tensor, NDArray[np.float32]]]:
    """Yield the images (N, C, H, W), labels (N,) and logits (N, outputs) of each batch."""
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
    options.log_severity_level = 3  # errors only: warnings are about internal optimizations
    return onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"]
    )


def _largest_difference(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> np.float32:
    """Return the largest absolute difference, with infinity instead of NaN."""
    return np.nan_to_num(np.abs(logits - expected), nan=np.inf, posinf=np.inf).max()


def _relative(error: np.float32, logit_range: np.float32) -> float:
    """Return the error divided by the range; 0 without an error, even if the range is 0."""
    if error == 0:
        return 0.0
    return float(error / logit_range) if logit_range > 0 else float("inf")


def _require_agreement(path: str | os.PathLike, result: dict[str, float | int]) -> None:
    error, same = result["relative_error"], result["same_top1_percent"]
    if error > LARGEST_RELATIVE_ERROR or same < SMALLEST_AGREEMENT_PERCENT:
        raise UserError(
            f"{path}: the outputs differ from those of the network in PyTorch. On "
            f"{result['images']} images, logits differ by up to {result['max_abs_error']:.3g}, "
            f"which is {error:.3g} of their range (expected at most {LARGEST_RELATIVE_ERROR:g}), "
            f"and {same:.2f} % of the images have the same top-1 prediction (expected at least "
            f"{SMALLEST_AGREEMENT_PERCENT:g} %). Delete the file and export it again. If the error "
            "remains, the network uses an operator that ONNX Runtime computes differently."
        )
