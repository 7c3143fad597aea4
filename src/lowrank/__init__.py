"""Make trained convolutional networks small and fast by low-rank decomposition."""

from typing import Any

__all__ = ["RECOMMENDED", "TUCKER", "Compressed", "UserError", "compress"]


def __getattr__(name: str) -> Any:
    # Not imported above: a step that needs no PyTorch would wait for it, and a device has only the
    # modules that measure.
    if name == "UserError":
        from lowrank.errors import UserError

        return UserError
    if name in __all__:
        from lowrank import api

        return getattr(api, name)
    raise AttributeError(f"module 'lowrank' has no attribute '{name}'")
