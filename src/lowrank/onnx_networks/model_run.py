"""Run an ONNX network in ONNX Runtime, with inner tensors as additional outputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime

from lowrank.errors import UserError
from lowrank.onnx_networks.model_file import custom_operators

Feed = Mapping[str, np.ndarray]

# Memory limit for the tensors that one run returns.
_RETURNED_BYTES = 400_000_000

# Types of inputs in ONNX Runtime, as types of NumPy.
_TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(uint8)": np.uint8,
    "tensor(int8)": np.int8,
    "tensor(bool)": np.bool_,
}

# Largest number of runs of a network at a time.
_MOST_RUNS = 8


class ModelRun:
    """A network that is loaded in ONNX Runtime on the CPU.

    Parameters
    ----------
    model
        The network. It is not changed.
    label
        Name of the network for messages, such as its path.
    inner
        Names of inner tensors that are returned beside the outputs.
    threads
        Number of threads of a run; 0 for all cores. Several runs at a time are possible.

    Raises
    ------
    UserError
        If ONNX Runtime cannot load the network.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        label: str,
        *,
        inner: Sequence[str] = (),
        threads: int = 0,
    ) -> None:
        self._label = label
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = _session(with_outputs(model, inner), options, label)
        self.inputs = {entry.name: _TYPES.get(entry.type) for entry in self._session.get_inputs()}
        self.outputs = [entry.name for entry in self._session.get_outputs()]

    def __call__(self, feed: Feed) -> dict[str, np.ndarray]:
        """Return the outputs and the inner tensors by name.

        Raises UserError if the inputs do not fit the network.
        """
        try:
            arrays = {
                name: np.ascontiguousarray(feed[name], dtype) for name, dtype in self.inputs.items()
            }
            values = self._session.run(None, arrays)
        except KeyError as error:
            raise UserError(
                f"{self._label}: needs a value for the input {error}; its inputs are "
                f"{', '.join(map(repr, self.inputs))}."
            ) from None
        except Exception as error:
            shapes = ", ".join(
                f"'{name}' of shape {list(array.shape)}" for name, array in feed.items()
            )
            raise UserError(
                f"{self._label}: ONNX Runtime cannot run this network on inputs {shapes}: "
                f"{_first_line(error)}. Give inputs as the network expects them."
            ) from error
        return dict(zip(self.outputs, values, strict=True))


def workers_for(runs: int) -> tuple[int, int]:
    """Return how many of several runs go on at a time, and the number of threads of each.

    Several runs with few threads each are faster than one with all threads, because the nodes are
    small. The number of runs is limited, because each of them needs memory for its tensors.
    """
    # A container or a batch system may allow fewer cores than the machine has.
    limited = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if limited else os.cpu_count() or 1
    workers = max(min(cores, runs, _MOST_RUNS), 1)
    return workers, cores // workers


def write_optimized(model: onnx.ModelProto, path: Path, label: str) -> None:
    """Write a network as ONNX Runtime simplifies it: constants folded, normalizations merged.

    The new file has the same operators for all processors. Raises UserError if ONNX Runtime cannot
    load the network.
    """
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(path)
    _session(model, options, label)


def _session(
    model: onnx.ModelProto, options: onnxruntime.SessionOptions, label: str
) -> onnxruntime.InferenceSession:
    options.log_severity_level = 4
    # Threads that spin while they wait double the processor time if other work shares the machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime's exceptions have no narrower base class.
        operators = custom_operators(model)
        hint = f" It uses the custom operators {', '.join(operators)}." if operators else ""
        raise UserError(
            f"{label}: ONNX Runtime {onnxruntime.__version__} cannot load this network: "
            f"{_first_line(error)}.{hint} Export it with standard operators, or install a newer "
            "onnxruntime."
        ) from error


def with_outputs(model: onnx.ModelProto, names: Iterable[str]) -> onnx.ModelProto:
    """Return a copy of a network with additional outputs; the network if there are none."""
    known = {output.name for output in model.graph.output}
    added = [name for name in dict.fromkeys(names) if name not in known]
    if not added:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    # ONNX Runtime infers the type of an output that states none.
    changed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in added)
    return changed


def only_outputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of a network with these tensors as its outputs; the network if there are none.

    ONNX Runtime skips the nodes that no output needs.
    """
    if not names:
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    del changed.graph.output[:]
    changed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    return changed


def zeros(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Return arrays of zeros for all inputs."""
    types = {
        graph_input.name: onnx.helper.tensor_dtype_to_np_dtype(
            graph_input.type.tensor_type.elem_type
        )
        for graph_input in model.graph.input
    }
    return {name: np.zeros(shape, types[name]) for name, shape in shapes.items()}


def noise(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """Return the same noise for all inputs on every call; zeros for inputs of whole numbers."""
    generator = np.random.default_rng(0)
    return {
        name: generator.standard_normal(array.shape).astype(array.dtype)
        if array.dtype.kind == "f"
        else array
        for name, array in zeros(model, shapes).items()
    }


def samples_per_run(
    run: ModelRun,
    model: onnx.ModelProto,
    shapes: Mapping[str, Sequence[int]],
) -> int:
    """Return how many samples a run takes, so that the tensors that it returns fit in memory.

    If the file fixes the size of the batch, it is that size. `shapes` is the shape of each input
    for one sample.
    """
    if not leaves_batch_open(model, shapes):
        return max(shape[0] for shape in shapes.values())
    returned = sum(array.nbytes for array in run(zeros(model, shapes)).values())
    return max(_RETURNED_BYTES // max(returned, 1), 1)


def leaves_batch_open(model: onnx.ModelProto, inputs: Iterable[str]) -> bool:
    """Return whether a run can take any number of samples: no input fixes the size of its batch."""
    names = set(inputs)
    return all(
        entry.type.tensor_type.shape.dim and entry.type.tensor_type.shape.dim[0].dim_value <= 0
        for entry in model.graph.input
        if entry.name in names
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
