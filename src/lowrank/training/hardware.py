"""Where a network is trained or run, and in which precision."""

import torch

from lowrank.errors import UserError


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU when PyTorch sees one. Raises UserError for a device that is absent."""
    available = torch.accelerator.is_available()
    if name == "auto":
        name = torch.accelerator.current_accelerator().type if available else "cpu"
    elif name != "cpu" and not (available and torch.accelerator.current_accelerator().type == name):
        raise UserError(
            f"device: '{name}' was asked for, but PyTorch sees none here. Use 'auto' or 'cpu'."
        )
    return torch.device(name)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the hardware multiplies it natively, float32 elsewhere.

    A capability, not a timing, decides: a stopwatch would make runs irreproducible.
    `benchmarks/training_speed.py` measures what either costs.
    """
    if name != "auto":
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device, precision: torch.dtype) -> torch.autocast:
    """The context in which the network multiplies in `precision`; none is needed for float32."""
    return torch.autocast(device.type, precision, enabled=precision is not torch.float32)
