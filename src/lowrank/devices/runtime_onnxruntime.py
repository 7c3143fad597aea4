"""ONNX Runtime: it runs ONNX files on many processors, through execution providers."""

from __future__ import annotations

import json
import re
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.devices.device import DeviceError
from lowrank.devices.measure_settings import MeasureSettings
from lowrank.devices.runtime import ModelInput, imported, option_text

# NumPy types of the inputs that models are measured with.
_TYPES: dict[str, Any] = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(int64)": np.int64,
    "tensor(int32)": np.int32,
    "tensor(int16)": np.int16,
    "tensor(int8)": np.int8,
    "tensor(uint8)": np.uint8,
    "tensor(bool)": np.bool_,
}


class OnnxRuntime:
    """See `lowrank.devices.runtime.Runtime`."""

    label = "ONNX Runtime"
    package = "onnxruntime"

    @property
    def version(self) -> str:
        """See `Runtime.version`."""
        version: str = imported(self).__version__
        return version

    def environment(self, settings: MeasureSettings) -> dict[str, Any]:
        """See `Runtime.environment`."""
        return {"provider": settings.provider}

    def load(self, model: Path, settings: MeasureSettings, *, profile: bool = False) -> _Session:
        """See `Runtime.load`. Raises DeviceError, too, if the provider is not available."""
        onnxruntime = imported(self)
        _require_provider(settings.provider, onnxruntime.get_available_providers())
        levels = onnxruntime.GraphOptimizationLevel
        options = onnxruntime.SessionOptions()
        folder = None
        if profile:
            folder = tempfile.TemporaryDirectory()
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder.name) / "profile")
        options.intra_op_num_threads = settings.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = {
            "all": levels.ORT_ENABLE_ALL,
            "extended": levels.ORT_ENABLE_EXTENDED,
            "basic": levels.ORT_ENABLE_BASIC,
            "none": levels.ORT_DISABLE_ALL,
        }[settings.optimization]
        options.log_severity_level = 3  # Errors only: its warnings are about its own choices.
        try:
            for name, value in settings.session.items():
                options.add_session_config_entry(name, option_text(value, ("0", "1")))
            session = onnxruntime.InferenceSession(
                str(model), options, providers=[settings.provider]
            )
        except Exception as error:  # ONNX Runtime's exceptions have no narrower base class.
            hint = " Check the entries of `session` in params.yaml." if settings.session else ""
            raise DeviceError(
                f"{model}: ONNX Runtime {onnxruntime.__version__} cannot load this file of "
                f"{model.stat().st_size} bytes as a model ({error}). If the file was truncated "
                "during a copy, export or download it again. If its operator set is too new, "
                f"install a newer onnxruntime.{hint}"
            ) from error
        # ONNX Runtime silently falls back to the CPU if a provider fails to start.
        if settings.provider not in session.get_providers():
            raise DeviceError(
                f"execution provider '{settings.provider}' is installed but did not start for "
                f"{model}. Running: {', '.join(session.get_providers())}. Check its drivers, or "
                "set `provider` in params.yaml to one of these."
            )
        return _Session(session, folder)


class _Session:
    """See `lowrank.devices.runtime.LoadedModel`. `folder` holds ONNX Runtime's own profile."""

    def __init__(self, session: Any, folder: Any) -> None:
        self._session, self._folder = session, folder
        self.inputs = [
            ModelInput(value.name, value.type, _TYPES.get(value.type), list(value.shape or []))
            for value in session.get_inputs()
        ]

    def run(self, feed: dict[str, np.ndarray]) -> list[np.ndarray]:
        """See `LoadedModel.run`."""
        outputs: list[np.ndarray] = self._session.run(None, feed)
        return outputs

    def node_microseconds(self) -> dict[tuple[str, str], list[float]]:
        """See `LoadedModel.node_microseconds`."""
        with self._folder:
            events = json.loads(Path(self._session.end_profiling()).read_text())
        microseconds: dict[tuple[str, str], list[float]] = defaultdict(list)
        for event in events:
            if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
                node = _node_name(event["name"]), event["args"]["op_name"]
                microseconds[node].append(event["dur"])
        return microseconds


def _require_provider(provider: str, available: list[str]) -> None:
    if provider not in available:
        raise DeviceError(
            f"execution provider '{provider}' is not available here. Available: "
            f"{', '.join(available)}. Set `provider` in params.yaml to one of these, or install "
            "the build of onnxruntime that provides it."
        )


def _node_name(event: str) -> str:
    """Return the node's name without what ONNX Runtime adds to it.

    A linear layer that it merged with its activation has "fused " before its name.
    """
    return re.sub(r"^fused |(_nchwc|_token_\d+)?_kernel_time$", "", event)


RUNTIME = OnnxRuntime()
