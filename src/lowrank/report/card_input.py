"""The section of a model card about the input and the output of a network."""

from collections.abc import Mapping, Sequence
from typing import Any


def input_facts(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the specification of the input, without the preparation of images if there is none.

    `described` holds the specification as `input`, and `takes_arrays` for a dataset of arrays,
    which are used as they are.
    """
    spec = dict(described["input"])
    if not described.get("takes_arrays"):
        return spec
    return {key: spec[key] for key in ("name", "input_shape", "num_classes")}


def input_lines(spec: Mapping[str, Any]) -> list[str]:
    """Return a line about the input and one about the output. `spec` is from `input_facts`."""
    shape = ", ".join(map(str, spec["input_shape"]))
    preparation = (
        _preparation(spec) if "mean" in spec else "arrays as they are in the dataset, not images"
    )
    return [
        f"- `images`, float32, (N, {shape}): {preparation}.",
        f"- `logits`, float32, (N, {spec['num_classes']}): a score for each class.",
    ]


def _preparation(spec: Mapping[str, Any]) -> str:
    def joined(values: Sequence[float]) -> str:
        return ", ".join(map(str, values))

    resizing = (
        f"shorter side resized to {spec['resize']} ({spec['interpolation']}), centre-cropped, "
        if spec["resize"]
        else ""
    )
    return (
        f"{spec['channel_order']}, {resizing}pixels scaled to [0, 1], minus "
        f"({joined(spec['mean'])}), divided by ({joined(spec['std'])})"
    )
