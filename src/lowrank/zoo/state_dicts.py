"""Finding a network's weights in what a training program saved, and saying which were taken.

Programs wrap the weights (`{"model": ..., "optimizer": ...}`), keep averaged ones beside them, and
put a prefix before each name (`module.`, `_orig_mod.`, Lightning's `model.`).
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lowrank.errors import UserError, unknown_name

Say = Callable[[str], None]

# What programs call the weights, best first.
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

# Weights that were averaged over the steps of training.
_AVERAGED = re.compile(r"(^|_|\.)(ema|swa|averaged)(_|\.|$)|ema$", re.IGNORECASE)

# Of the rest of a training program's state.
_NOT_WEIGHTS = re.compile(r"optim|sched|scaler|loss|criterion|callbacks|loops", re.IGNORECASE)

# How deep wrappers are looked into.
_DEPTH = 4


def find_state_dict(content: Any, path: Path, key: str | None, say: Say) -> dict[str, Tensor]:
    """The tensors by name in what a file holds.

    Parameters
    ----------
    content
        What the file holds: the tensors, or dictionaries around them.
    path
        The file to blame.
    key
        Which of several, as `checkpoint.<model>.state_key` in params.yaml; None: the weights as
        trained, rather than averaged ones.
    say
        Told what was taken where the file holds more.

    Raises UserError where there are none, none of that name, or several without a usual name.
    """
    found = dict(_state_dicts(content))
    if not found:
        raise UserError(
            f"{path}: holds {_kind(content)}, not a dictionary of tensors. Save "
            "`network.state_dict()`."
        )
    if key is None:
        taken = _usual(found, path)
    elif key in found:
        taken = key
    else:
        raise unknown_name(
            "weights", key, filter(None, found), where=f"{path}: `state_key` of its checkpoint"
        )
    others = sorted(name for name in found if name != taken)
    if taken or others:
        line = f"{path}: weights taken from '{taken}'" if taken else f"{path}: weights taken"
        if others:
            line += f"; it holds {', '.join(map(repr, others))} as well, which `state_key` takes"
        say(line)
    return found[taken]


def without_prefix(
    weights: Mapping[str, Tensor], expected: Collection[str], source: str, say: Say
) -> dict[str, Tensor] | None:
    """The weights under the network's names, where they have one prefix or torch.compile's marks.

    Tensors under another prefix belong to other modules of the training program and are left out;
    `say` is told. None where no prefix leads to all the names that are expected.
    """
    plain = {name.replace("_orig_mod.", ""): tensor for name, tensor in weights.items()}
    first = max(expected, key=len, default="")
    ends = (name for name in plain if name.endswith(f".{first}"))
    prefixes = {name.removesuffix(first) for name in ends} | {""}
    fitting = [p for p in prefixes if all(p + name in plain for name in expected)]
    if not fitting or len(plain) < len(weights):
        return None
    # Rather the weights as trained than averaged ones, and rather few wrappers than many.
    prefix = min(fitting, key=lambda each: (bool(_AVERAGED.search(each)), len(each), each))
    left = [name for name in plain if not name.startswith(prefix)]
    if prefix or len(fitting) > 1:
        line = f"{source}: the prefix '{prefix}' was taken off the names"
        others = {name.partition(".")[0] for name in left}
        say(line + (f"; not taken: {', '.join(sorted(others))}" if others else ""))
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in plain.items()
        if name.startswith(prefix)
    }


def require_plain(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise UserError for the first tensor that has no dense values of its own."""
    for name, tensor in tensors.items():
        if tensor.is_meta:
            problem = "has a shape and no values (device 'meta'). Save the network after loading it"
        elif tensor.is_quantized:
            problem = "is quantized. Take the checkpoint from before quantization"
        elif tensor.is_nested or str(tensor.layout) != "torch.strided":
            layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
            problem = f"is {layout}, expected dense values. Save `tensor.to_dense()`"
        elif tensor.is_complex():
            problem = f"is complex ({tensor.dtype}), and only real weights can be compressed"
        else:
            continue
        raise UserError(f"{path}: tensor '{name}' {problem}.")


def _state_dicts(
    content: Any, place: str = "", depth: int = 0
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Each dictionary of tensors in nested dictionaries, by its keys with dots between."""
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return
    if not all(isinstance(name, str) for name in content):
        return
    # Modules may keep state that is no tensor, and PyTorch's marks of versions.
    rest = {name: each for name, each in content.items() if not name.endswith("_extra_state")}
    if rest and all(isinstance(each, Tensor) for each in rest.values()):
        yield place, rest
        return
    for name, each in rest.items():
        if not _NOT_WEIGHTS.search(name):
            yield from _state_dicts(each, f"{place}.{name}" if place else name, depth + 1)


def _usual(found: Mapping[str, Any], path: Path) -> str:
    """The name of the weights as trained."""
    if len(found) == 1:
        return next(iter(found))
    trained = [name for name in found if not _AVERAGED.search(name)] or list(found)
    for wrapper in _WRAPPERS:
        for name in trained:
            if name.partition(".")[0] == wrapper:
                return name
    if len(trained) == 1:
        return trained[0]
    raise UserError(
        f"{path}: holds several dictionaries of tensors: {', '.join(map(repr, sorted(found)))}. "
        "Name one as `state_key` of its entry under `checkpoint` in params.yaml."
    )


def _kind(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary with the keys {sorted(map(str, content))[:10]}"
    return type(content).__name__
