"""Find the weights of a network in a checkpoint of a training program.

Training programs wrap the weights (`{"model": ..., "optimizer": ...}`), store averaged weights next
to them, and add a prefix to each name (`module.`, `_orig_mod.`, Lightning's `model.`).
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lowrank.errors import UserError, unknown_name

Say = Callable[[str], None]

# Keys under which training programs store the weights, most preferred first.
_WRAPPERS = (
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "network",
    "net",
    "module",
    "weights",
    "params",
    "backbone",
)

# Keys of weights that were averaged over training steps.
_AVERAGED = re.compile(r"(^|_|\.)(ema|swa|averaged)(_|\.|$)|ema$", re.IGNORECASE)

# Keys of the other state of a training program.
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|loss|criterion|callbacks|loops", re.IGNORECASE)

# Maximum depth of nested wrappers.
_DEPTH = 4


def find_state_dict(content: Any, path: Path, key: str | None, say: Say) -> dict[str, Tensor]:
    """Find the state dictionary in the content of a checkpoint file.

    Parameters
    ----------
    content
        Content of the file: tensors by name, or dictionaries around them.
    path
        File to name in messages.
    key
        State dictionary to use if the file holds several, as `checkpoint.<model>.state_key` in
        params.yaml. None selects the trained weights rather than averaged weights.
    say
        Called with a message that says which weights are used.

    Returns
    -------
    dict
        The tensors by name.

    Raises
    ------
    UserError
        If there is no state dictionary, none with the name `key`, or several without a common
        name.
    """
    state_dicts = dict(_state_dicts(content))
    if not state_dicts:
        raise UserError(
            f"{path}: holds {_kind(content)}, not a dictionary of tensors. Save "
            "`network.state_dict()`."
        )
    if key is None:
        chosen = _default_key(state_dicts, path)
    elif key in state_dicts:
        chosen = key
    else:
        raise unknown_name(
            "weights",
            key,
            filter(None, state_dicts),
            where=f"{path}: `state_key` of its checkpoint",
        )
    others = sorted(name for name in state_dicts if name != chosen)
    if chosen or others:
        message = f"{path}: using the weights"
        if chosen:
            message += f" in '{chosen}'"
        if others:
            message += (
                f"; the file also holds {', '.join(map(repr, others))}, which `state_key` can "
                "select"
            )
        say(message)
    return state_dicts[chosen]


def without_prefix(
    weights: Mapping[str, Tensor], expected: Collection[str], source: str, say: Say
) -> dict[str, Tensor] | None:
    """Return the weights without a common prefix and without the prefixes of torch.compile.

    Tensors with another prefix belong to other modules of the training program. They are skipped,
    and `say` is called with a message. Returns None if no prefix leads to all `expected` names.
    """
    plain = {name.replace("_orig_mod.", ""): tensor for name, tensor in weights.items()}
    longest = max(expected, key=len, default="")
    matches = (name for name in plain if name.endswith(f".{longest}"))
    prefixes = {name.removesuffix(longest) for name in matches} | {""}
    candidates = [p for p in prefixes if all(p + name in plain for name in expected)]
    if not candidates or len(plain) < len(weights):
        return None
    # Prefer trained weights to averaged weights, and short prefixes to long ones.
    prefix = min(candidates, key=lambda p: (bool(_AVERAGED.search(p)), len(p), p))
    skipped = {name.partition(".")[0] for name in plain if not name.startswith(prefix)}
    if prefix or len(candidates) > 1:
        message = f"{source}: removed the prefix '{prefix}' from the names"
        say(message + (f"; skipped: {', '.join(sorted(skipped))}" if skipped else ""))
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in plain.items()
        if name.startswith(prefix)
    }


def require_plain(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError for the first tensor that does not hold dense real values."""
    for name, tensor in tensors.items():
        if tensor.is_meta:
            problem = "has no values (device 'meta'). Save the network after loading its weights"
        elif tensor.is_quantized:
            problem = "is quantized. Use the checkpoint from before quantization"
        elif tensor.is_nested or str(tensor.layout) != "torch.strided":
            layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            problem = f"is {layout}, expected dense values. Save `tensor.to_dense()`"
        elif tensor.is_complex():
            problem = f"is complex ({tensor.dtype}); only real weights can be compressed"
        else:
            continue
        raise UserError(f"{path}: tensor '{name}' {problem}.")


def _state_dicts(
    content: Any, place: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield each dictionary of tensors in nested dictionaries, with its keys joined by dots."""
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return
    if not all(isinstance(name, str) for name in content):
        return
    # Modules can store extra state that is not a tensor.
    entries = {name: value for name, value in content.items() if not name.endswith("_extra_state")}
    if entries and all(isinstance(value, Tensor) for value in entries.values()):
        yield place, entries
        return
    for name, value in entries.items():
        if not _NOT_WEIGHTS.search(name):
            yield from _state_dicts(value, f"{place}.{name}" if place else name, depth + 1)


def _default_key(state_dicts: Mapping[str, Any], path: Path) -> str:
    """Return the key of the trained weights."""
    if len(state_dicts) == 1:
        return next(iter(state_dicts))
    trained = [name for name in state_dicts if not _AVERAGED.search(name)] or list(state_dicts)
    for wrapper in _WRAPPERS:
        for name in trained:
            if name.partition(".")[0] == wrapper:
                return name
    if len(trained) == 1:
        return trained[0]
    raise UserError(
        f"{path}: holds several dictionaries of tensors: "
        f"{', '.join(map(repr, sorted(state_dicts)))}. Set `state_key` to one of them in its entry "
        "under `checkpoint` in params.yaml."
    )


def _kind(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary with the keys {sorted(map(str, content))[:10]}"
    return type(content).__name__
