"""Check that a network can take the arrays of a dataset."""

from __future__ import annotations

from lowrank.core.tensors import by_name
from lowrank.data.images import Images, InputArray
from lowrank.errors import UserError
from lowrank.zoo.registry import NetworkSpec

#: Name of the array of classes in an .npz file, and of the class in a sample.
LABELS = "labels"


def require_arrays_match(samples: Images, dataset: str, spec: NetworkSpec) -> None:
    """Raise UserError if samples do not fit the inputs of a network that takes no images.

    Parameters
    ----------
    samples
        Samples of the dataset.
    dataset
        Name of the dataset.
    spec
        Specification of the network, with `forms`.
    """
    place = f"dataset.{dataset}"
    needed = f"the network {spec.name} takes {', '.join(map(str, spec.forms))}"
    if not isinstance(samples, InputArray):
        raise UserError(
            f"{place}: has images, but {needed}, not images. Use a dataset of `kind: arrays` or "
            "`kind: function`."
        )
    arrays = by_name(samples.values)
    if len(spec.forms) == 1 and len(arrays) == 1:
        arrays = {spec.forms[0].name: next(iter(arrays.values()))}
    names = {form.name for form in spec.forms}
    if wrong := [*sorted(names - arrays.keys()), *sorted(arrays.keys() - names)]:
        found = ", ".join(repr(name) for name in arrays if name) or "a single array"
        problem = "lacks the input" if wrong[0] in names else "has an input too many,"
        reserved = f" The name `{LABELS}` is reserved for classes." if wrong[0] == LABELS else ""
        raise UserError(
            f"{place}: {problem} '{wrong[0]}': it has {found}, but {needed}. Name the arrays like "
            f"the inputs of the network.{reserved}"
        )
    for form in spec.forms:
        array = arrays[form.name]
        shape, dtype = array.shape[1:], array.dtype.name
        if shape != form.shape:
            raise UserError(
                f"{place}: a sample of the input '{form.name}' has the shape {shape}, but the "
                f"network {spec.name} needs {form.shape}. Arrays are used as they are: correct the "
                "arrays, or the sizes under `checkpoint` (`inputs`, `input_shape`)."
            )
        if dtype != form.dtype:
            raise UserError(
                f"{place}: the input '{form.name}' has the type {dtype}, but the network "
                f"{spec.name} needs {form.dtype}. Convert the array: "
                f"`array.astype('{form.dtype}')`."
            )
