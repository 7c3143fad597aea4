"""Store the samples of a user's own dataset function as arrays."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.config.dataset import DatasetSettings
from lowrank.core.progress import Progress
from lowrank.core.user_code import called_function, imported_function, reason_of
from lowrank.data.input_arrays import Samples, store_samples
from lowrank.data.obtaining import Say
from lowrank.data.sources import write_chunks
from lowrank.errors import UserError
from lowrank.temporary import temporary_folder

_EXPECTED = (
    "expected a map-style dataset or a sequence of samples, or a dictionary of these with `train` "
    "and optionally `validation`"
)


def store_function(output: Path, name: str, settings: DatasetSettings, say: Say) -> None:
    """Call a user's function once, and store its samples as `store_samples` does.

    The function returns a sequence of samples (with `len` and indexing), or a dictionary with
    `train` and optionally `validation`. A sample is the input of the network without the batch
    axis, such as an image (C, H, W), or a pair of this and its class. Values of floating-point
    types become float32.

    Raises
    ------
    UserError
        If the function cannot be imported or called, if it returns something else, or if samples
        fail, differ in their shape or are unusable.
    """
    place = f"dataset.{name}"
    if settings.function is None:
        raise UserError(f"{place}: kind function needs `function`.")
    label = f"{place}.function '{settings.function}'"
    function = imported_function(settings.function, label)
    parts = _parts(called_function(function, settings.arguments, label), label)
    output.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(output.parent) as folder:
        samples = {
            part: _collected(Path(folder, f"{part}.npy"), dataset, f"{label}, `{part}`")
            for part, dataset in parts.items()
        }
        store_samples(
            output, name, settings.outputs, samples["train"], samples.get("validation"), say
        )


def _parts(returned: object, label: str) -> dict[str, Any]:
    """Return the datasets by part. Raises UserError for anything else than datasets."""
    parts = dict(returned) if isinstance(returned, Mapping) else {"train": returned}
    if "train" not in parts or not parts.keys() <= {"train", "validation"}:
        raise UserError(
            f"{label}: it returns a dictionary with {', '.join(map(repr, parts)) or 'no entry'}; "
            f"{_EXPECTED}."
        )
    for part, dataset in parts.items():
        if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
            raise UserError(f"{label}: `{part}` is {_described(dataset)}; {_EXPECTED}.")
        if isinstance(dataset, str) or len(dataset) == 0:
            raise UserError(f"{label}: `{part}` is {_described(dataset)} without samples.")
    return parts


def _collected(path: Path, dataset: Any, label: str) -> Samples:
    """Write all inputs of a dataset into a file, and return them as a mapped array."""
    labels: list[int | None] = []
    first, _ = _sample(dataset, 0, label)

    def inputs() -> Iterator[NDArray[Any]]:
        progress = Progress(len(dataset), "samples")
        for number in range(len(dataset)):
            value, klass = _sample(dataset, number, label)
            if (value.shape, value.dtype) != (first.shape, first.dtype):
                raise UserError(
                    f"{label}: sample {number} has the shape {value.shape} and the type "
                    f"{value.dtype}, but sample 0 has {first.shape} and {first.dtype}. Return "
                    "samples of one form."
                )
            labels.append(klass)
            yield value
            progress.advance()

    write_chunks(path, first.dtype, (len(dataset), *first.shape), inputs())
    without = [number for number, klass in enumerate(labels) if klass is None]
    if 0 < len(without) < len(labels):
        raise UserError(
            f"{label}: {len(without)} of {len(labels)} samples have no class, the first is sample "
            f"{without[0]}. Return a class for all samples or for none."
        )
    classes = None if without else np.array(labels, np.int64)
    return Samples(label, np.load(path, mmap_mode="r"), classes)


def _sample(dataset: Any, number: int, label: str) -> tuple[NDArray[Any], int | None]:
    """Return the input and the class of one sample."""
    try:
        sample = dataset[number]
    except Exception as error:  # The code of the user can raise anything.
        raise UserError(
            f"{label}: sample {number} of {len(dataset)} fails: {reason_of(error)}. Correct the "
            "dataset."
        ) from error
    pair = isinstance(sample, tuple | list) and len(sample) == 2
    value, klass = sample if pair else (sample, None)
    array = _as_array(value)
    if array.dtype.kind not in "fiu" or array.ndim == 0:
        raise UserError(
            f"{label}: sample {number} is {_described(value)}; expected an array or tensor of "
            "numbers, such as an image (C, H, W), or a pair of this and a class."
        )
    if array.dtype.kind == "f":
        array = array.astype(np.float32)
    return np.ascontiguousarray(array), None if klass is None else _as_class(klass, number, label)


def _as_array(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return value if isinstance(value, np.ndarray) else np.array(None)


def _as_class(value: Any, number: int, label: str) -> int:
    array = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    if array.size != 1 or array.dtype.kind not in "iu" or array.item() < 0:
        raise UserError(
            f"{label}: the class of sample {number} is {_described(value)}; expected a whole "
            "number from 0. Return only the input for a task without classes."
        )
    return int(array.item())


def _described(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text}" if len(text) < 40 else f"a {type(value).__name__}"
