"""Make trained convolutional networks small and fast by low-rank decomposition."""

from typing import Any

from lowrank.errors import UserError

__all__ = ["Compressed", "UserError", "compress"]


def __getattr__(name: str) -> Any:
    # Not imported above: a step that needs no PyTorch would wait for it.
    if name in __all__:
        from lowrank import api

        return getattr(api, name)
    raise AttributeError(f"module 'lowrank' has no attribute '{name}'")
