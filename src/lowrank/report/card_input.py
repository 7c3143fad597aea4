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
    kept = ("name", "input_shape", "num_classes", "inputs")
    return {key: spec[key] for key in kept if key in spec}


def metadata_of(model: Any) -> dict[str, str]:
    """Return the metadata that a user's ONNX file brings, such as a dictionary of characters."""
    return {entry.key: entry.value for entry in model.metadata_props}


def input_lines(network: Mapping[str, Any], spec: Mapping[str, Any]) -> list[str]:
    """Return lines about the inputs and the outputs.

    Parameters
    ----------
    network
        How the network is built, as in params.yaml.
    spec
        Specification of the input, from `input_facts`.
    """
    shape = ", ".join(map(str, spec["input_shape"]))
    preparation = (
        _preparation(spec) if "mean" in spec else "arrays as they are in the dataset, not images"
    )
    if file := network.get("onnx"):
        names = f"- Names, types and open sizes are those of `{file}`."
        if inputs := spec.get("inputs"):
            listed = " and ".join(map(_form, inputs))
            return [names, f"- Measured on {listed}: {preparation}."]
        layout = "(N, H, W, C)" if spec.get("layout") == "nhwc" else "(N, C, H, W)"
        return [
            names,
            f"- Measured on inputs (N, {shape}), in the layout {layout}: {preparation}.",
        ]
    outputs = (
        f"- `logits`, float32, (N, {spec['num_classes']}): a score for each class."
        if spec["num_classes"]
        else "- The outputs of the network, under the names in the file."
    )
    (entry,) = spec.get("inputs", [{"name": "images", "type": "float32"}])
    return [f"- `{entry['name']}`, {entry['type']}, (N, {shape}): {preparation}.", outputs]


def _form(form: Mapping[str, Any]) -> str:
    sizes = "".join(f", {size}" for size in form["shape"])
    return f"`{form['name']}` (N{sizes}) of {form['type']}"


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
