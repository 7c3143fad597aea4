"""OpenVINO: it reads ONNX files and runs them on x86 and ARM processors."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.devices.device import DeviceError
from lowrank.devices.measure_settings import (
    ONNXRUNTIME_SETTINGS,
    MeasureSettings,
    default_of,
)
from lowrank.devices.runtime import ModelInput, imported, option_text

_DEVICE = "CPU"

# One run at a time, in float32. Without these properties, OpenVINO computes in bfloat16 on
# processors that have it, and a network in float is then no longer the one whose accuracy is known.
_PROPERTIES = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
    "INFERENCE_PRECISION_HINT": "f32",
}

# ONNX Runtime's names of OpenVINO's operators with weights, in float and in int8. The types of
# OpenVINO's matrix products are `FullyConnected` with suffixes.
_PRODUCTS = {
    "Convolution": ("Conv", "QLinearConv"),
    "GroupConvolution": ("Conv", "QLinearConv"),
    "Deconvolution": ("ConvTranspose", "QLinearConvTranspose"),
    "FullyConnected": ("Gemm", "QGemm"),
    "MatMul": ("MatMul", "QLinearMatMul"),
}
_OPERATORS = {"FakeQuantize": "QuantizeLinear"}

# OpenVINO appends these to the name of a node that it divides.
_NAME_SUFFIX = "/WithoutBiases"


class OpenVino:
    """See `lowrank.devices.runtime.Runtime`."""

    label = "OpenVINO"
    package = "openvino"

    @property
    def version(self) -> str:
        """See `Runtime.version`."""
        build: str = imported(self).__version__  # Such as 2026.4.1-22982-e213a147257.
        return build.partition("-")[0]

    def environment(self, settings: MeasureSettings) -> dict[str, Any]:
        """See `Runtime.environment`."""
        properties = {**_PROPERTIES, **settings.session}
        return {"precision": str(properties["INFERENCE_PRECISION_HINT"])}

    def load(self, model: Path, settings: MeasureSettings, *, profile: bool = False) -> _Compiled:
        """See `Runtime.load`. Raises DeviceError, too, for settings that OpenVINO does not have."""
        openvino = imported(self)
        for name in ONNXRUNTIME_SETTINGS:
            if getattr(settings, name) != default_of(name):
                raise DeviceError(
                    f"`{name}: {getattr(settings, name)}` is a setting of ONNX Runtime, which has "
                    f"no effect with `runtime: openvino`. Remove it from params.yaml."
                )
        if "INFERENCE_NUM_THREADS" in settings.session:
            raise DeviceError(
                "`session` sets INFERENCE_NUM_THREADS, but the number of threads is the setting "
                "`threads`. Remove it from `session` in params.yaml."
            )
        properties = {
            **_PROPERTIES,
            **{name: option_text(value, ("NO", "YES")) for name, value in settings.session.items()},
            "INFERENCE_NUM_THREADS": str(settings.threads),
            **({"PERF_COUNT": "YES"} if profile else {}),
        }
        try:
            compiled = openvino.Core().compile_model(str(model), _DEVICE, properties)
        except RuntimeError as error:
            reason = " ".join(line.strip() for line in str(error).splitlines()[-4:]).strip()
            hint = " Check the properties in `session` in params.yaml." if settings.session else ""
            raise DeviceError(
                f"{model}: OpenVINO {self.version} cannot load this file of "
                f"{model.stat().st_size} bytes as a model ({reason}). If the file was truncated "
                "during a copy, export or download it again. If OpenVINO lacks an operator, "
                f"measure with `runtime: onnxruntime`.{hint}"
            ) from error
        return _Compiled(compiled, profile)


class _Compiled:
    """See `lowrank.devices.runtime.LoadedModel`."""

    def __init__(self, compiled: Any, profile: bool) -> None:
        self._outputs = compiled.outputs
        self._request = compiled.create_infer_request()
        self._profiles: list[dict[tuple[str, str], float]] | None = [] if profile else None
        self.inputs = [_input_of(value) for value in compiled.inputs]

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """See `LoadedModel.run`."""
        # Inputs are read in place, as ONNX Runtime does.
        results = self._request.infer(feed, share_inputs=True)
        if self._profiles is not None:
            self._profiles.append(_profile_of(self._request))
        return [results[output] for output in self._outputs]

    def node_microseconds(self) -> dict[tuple[str, str], list[float]]:
        """See `LoadedModel.node_microseconds`."""
        microseconds: dict[tuple[str, str], list[float]] = defaultdict(list)
        for profile in self._profiles or []:
            for node, duration in profile.items():
                microseconds[node].append(duration)
        return microseconds


def _input_of(value: Any) -> ModelInput:
    """Describe an input of a compiled model."""
    try:
        dtype = np.dtype(value.element_type.to_dtype())
    except RuntimeError:  # Texts have no such type.
        dtype = None
    if dtype is not None and dtype.kind not in "fiub":
        dtype = None
    sizes = [size.get_length() if size.is_static else str(size) for size in value.partial_shape]
    return ModelInput(value.any_name, value.element_type.get_type_name(), dtype, sizes)


def _profile_of(request: Any) -> dict[tuple[str, str], float]:
    """Return the µs of each node in the last run. Parts of one node are added."""
    microseconds: dict[tuple[str, str], float] = defaultdict(float)
    for node in request.get_profiling_info():
        if node.status == node.Status.EXECUTED:
            name = node.node_name.partition(_NAME_SUFFIX)[0]
            operator = operator_of(node.node_type, node.exec_type)
            microseconds[name, operator] += node.real_time.total_seconds() * 1e6
    return microseconds


def operator_of(node_type: str, kernel: str) -> str:
    """Return ONNX Runtime's name for an operator of OpenVINO.

    Parameters
    ----------
    node_type : str
        Type of the node, such as `Convolution` or `FullyConnectedQuantizedLegacy`.
    kernel : str
        Name of its kernel, which ends with the type that it computes in: `brgconv_avx512_I8`.
    """
    is_integer = kernel.upper().endswith(("_I8", "_U8"))
    for product, names in _PRODUCTS.items():
        if node_type.startswith(product):
            return names[is_integer]
    return _OPERATORS.get(node_type, node_type)


RUNTIME = OpenVino()
