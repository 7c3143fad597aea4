"""Compare an ONNX file with the network in PyTorch, and measure it in ONNX Runtime."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnxruntime
import torch
from torch import nn

from lowrank.core.background import in_background
from lowrank.core.progress import Progress
from lowrank.data.batches import Batch, EvaluationBatches
from lowrank.data.datasets import Split
from lowrank.errors import UserError
from lowrank.evaluation.network import require_labels
from lowrank.evaluation.session_run import SessionRun
from lowrank.onnx_files.export import inference_copy
from lowrank.tasks.outputs import float_pairs, joined, mapped, outputs_from
from lowrank.tasks.task import Measured, Task
from lowrank.zoo.registry import NetworkSpec

# Limits for the comparison. For trained networks, rounding errors are far below them. The error is
# relative to the range of the outputs, which differs between networks by orders of magnitude.
LARGEST_RELATIVE_ERROR = 1e-3
SMALLEST_AGREEMENT_PERCENT = 99.9


@dataclass(frozen=True)
class ExportedNetworks:
    """Measurement of ONNX files in ONNX Runtime on the CPU.

    Parameters
    ----------
    task
        Task of the networks.
    spec
        Specification of their input.
    threads
        Number of CPU threads.
    float_kernels
        Run an int8 file with float kernels between its conversions. This gives the expected
        outputs on another processor whose integer kernels this processor does not have.
    """

    task: Task
    spec: NetworkSpec
    threads: int
    float_kernels: bool = False

    def measure(self, path: str | os.PathLike, split: Split) -> Measured:
        """Return the metrics of a file. Raises UserError if labels are needed and missing."""
        require_labels(self.task, split)
        network = self._network(path)
        return self.task.measure_split(
            split.name,
            lambda inputs: split.of_classes(network(inputs)),
            split.with_labels(self._batches(split)),
        )

    def values(self, path: str | os.PathLike, split: Split) -> dict[str, float]:
        """Return the value of each metric of a file by its key; see `measure`."""
        return self.measure(path, split).values

    def outputs(self, path: str | os.PathLike, split: Split) -> Any:
        """Return the outputs of a file for all images, (N, ...), or several outputs by name."""
        network = self._network(path)
        return joined([split.of_classes(network(x)) for x, _ in self._batches(split)])

    def compare_with_pytorch(
        self, path: str | os.PathLike, network: nn.Module, split: Split
    ) -> dict[str, Any]:
        """Run a file and its network in PyTorch on the same images, in float32 on the CPU.

        Returns
        -------
        dict
            `max_abs_error`, the largest absolute error of the outputs; `relative_error`, this error
            divided by the range of PyTorch's outputs over all images (largest minus smallest);
            `same_<key of the metric>_percent`, the share of images with the same answer; `images`,
            the number of images.

        Raises
        ------
        UserError
            If the relative error is above 1e-3, or fewer than 99.9 % of the images have the same
            answer.
        """
        exported, frozen = self._network(path), inference_copy(network)
        ranges, same = _OutputRanges(), 0
        previous_threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            for inputs, _ in self._batches(split):
                outputs = exported(inputs)
                with torch.inference_mode():
                    expected = outputs_from(frozen(inputs))
                ranges.add(outputs, expected)
                answers = map(split.of_classes, (outputs, expected))
                same += int(self.task.same(*answers).sum())
        finally:
            torch.set_num_threads(previous_threads)
        result = {
            **ranges.errors(),
            f"same_{self.task.metric.key}_percent": 100.0 * same / len(split),
            "images": len(split),
        }
        _require_agreement(path, result, self.task)
        return result

    def _network(self, path: str | os.PathLike) -> Callable[[Any], Any]:
        """Return a function from inputs (N, ...) to the outputs of a file, (N, ...)."""
        return SessionRun(_open(path, self.threads, self.float_kernels), self.spec)

    def _batches(self, split: Split) -> Iterator[Batch]:
        """Yield the inputs (N, ...) and labels (N,) of each batch, and report progress."""
        batches, progress = EvaluationBatches(split, self.spec), Progress(len(split))
        for images, labels in in_background(batches.__getitem__, range(len(batches)), self.threads):
            yield mapped(torch.Tensor.contiguous, images), labels
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


class _OutputRanges:
    """The largest error and the range of each floating-point output over all images."""

    def __init__(self) -> None:
        self._errors: dict[str, float] = {}
        self._lowest: dict[str, float] = {}
        self._highest: dict[str, float] = {}

    def add(self, outputs: Any, expected: Any) -> None:
        """Add the outputs of a batch and the expected ones."""
        for name, (actual, reference) in float_pairs(outputs, expected).items():
            # Infinity instead of NaN, because comparisons with NaN are false.
            error = float((actual - reference).abs().nan_to_num(torch.inf, torch.inf).max())
            self._errors[name] = max(error, self._errors.get(name, 0.0))
            self._lowest[name] = min(float(reference.min()), self._lowest.get(name, torch.inf))
            self._highest[name] = max(float(reference.max()), self._highest.get(name, -torch.inf))

    def errors(self) -> dict[str, float]:
        """Return the largest absolute error, and the largest one relative to an output's range."""
        relative = (
            _relative(self._errors[n], self._highest[n] - self._lowest[n]) for n in self._errors
        )
        return {
            "max_abs_error": max(self._errors.values()),
            "relative_error": max(relative),
        }


def _relative(error: float, output_range: float) -> float:
    """Return the error divided by the range; 0 without an error, even if the range is 0."""
    if error == 0:
        return 0.0
    return error / output_range if output_range > 0 else float("inf")


def _require_agreement(path: str | os.PathLike, result: dict[str, Any], task: Task) -> None:
    metric = task.metric
    error, same = result["relative_error"], result[f"same_{metric.key}_percent"]
    if error > LARGEST_RELATIVE_ERROR or same < SMALLEST_AGREEMENT_PERCENT:
        raise UserError(
            f"{path}: the outputs differ from those of the network in PyTorch. On "
            f"{result['images']} images, they differ by up to {result['max_abs_error']:.3g}, "
            f"which is {error:.3g} of their range (expected at most {LARGEST_RELATIVE_ERROR:g}), "
            f"and {same:.2f} % of the images have the same {metric.name} prediction (expected at "
            f"least {SMALLEST_AGREEMENT_PERCENT:g} %). Delete the file and export it again. If the "
            "error remains, the network uses an operator that ONNX Runtime computes differently."
        )
