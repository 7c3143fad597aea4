"""Choose the device and the precision for training or running a network."""

import torch

from lowrank.errors import UserError
from lowrank.training.gpu_claim import claimed_gpu


def pick_device(name: str) -> torch.device:
    """Return the device with this name; `auto` is a GPU if PyTorch finds one, else the CPU.

    A CUDA device is one that no other job uses: see `claimed_gpu`. Raises UserError if the device
    is not available.
    """
    kind = device_type(name)
    return torch.device(kind, claimed_gpu()) if kind == "cuda" else torch.device(kind)


def device_type(name: str) -> str:
    """Return the type of the device with this name: `cpu`, `cuda` or `mps`.

    Raises UserError if the device is not available.
    """
    available = torch.accelerator.is_available()
    accelerator = torch.accelerator.current_accelerator() if available else None
    accelerator_type = accelerator.type if accelerator else "cpu"
    if name == "auto":
        return accelerator_type
    if name not in ("cpu", accelerator_type):
        raise UserError(f"device: PyTorch finds no '{name}' on this machine. Use 'auto' or 'cpu'.")
    return name


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Return the precision with this name; `auto` is bfloat16 if the hardware supports it natively.

    Otherwise `auto` is float32. The choice depends on a capability and not on measured time, so
    that runs are reproducible. `benchmarks/training_speed.py` measures both.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """Return an autocast context for `precision`; it is disabled for float32."""
    return torch.autocast(device.type, precision, enabled=precision is not torch.float32)
