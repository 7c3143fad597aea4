"""Store the samples of a user's own dataset function as arrays."""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.config.dataset import DatasetSettings
from lowrank.core.progress import Progress
from lowrank.core.tensors import by_name
from lowrank.core.user_code import called_function, imported_function, reason_of
from lowrank.data.input_arrays import Samples, as_inputs, store_samples
from lowrank.data.obtaining import Say
from lowrank.data.sources import array_writer
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
    axis, such as an image (C, H, W), a dictionary of several inputs by name, or a pair of this and
    its class. Values of floating-point types become float32.

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
            part: _collected(Path(folder, part), dataset, f"{label}, `{part}`")
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


def _collected(folder: Path, dataset: Any, label: str) -> Samples:
    """Write all inputs of a dataset into a new folder, and return them as mapped arrays."""
    labels: list[int | None] = []
    first, _ = _sample(dataset, 0, label)
    folder.mkdir()
    files = {name: folder / f"{number}.npy" for number, name in enumerate(first)}
    progress = Progress(len(dataset), "samples")
    with ExitStack() as stack:
        writers = {
            name: stack.enter_context(
                array_writer(files[name], array.dtype, (len(dataset), *array.shape))
            )
            for name, array in first.items()
        }
        for number in range(len(dataset)):
            arrays, klass = _sample(dataset, number, label)
            _require_same_form(arrays, first, number, label)
            for name, write in writers.items():
                write(arrays[name])
            labels.append(klass)
            progress.advance()
    without = [number for number, klass in enumerate(labels) if klass is None]
    if 0 < len(without) < len(labels):
        raise UserError(
            f"{label}: {len(without)} of {len(labels)} samples have no class, the first is sample "
            f"{without[0]}. Return a class for all samples or for none."
        )
    classes = None if without else np.array(labels, np.int64)
    mapped_files = {name: np.load(file, mmap_mode="r") for name, file in files.items()}
    return Samples(label, as_inputs(mapped_files), classes)


def _require_same_form(
    arrays: Mapping[str, NDArray[Any]], first: Mapping[str, NDArray[Any]], number: int, label: str
) -> None:
    """Raise UserError if a sample has other inputs, shapes or types than the first one."""
    if arrays.keys() != first.keys():
        raise UserError(
            f"{label}: sample {number} has the inputs {', '.join(map(repr, arrays))}, but sample 0 "
            f"has {', '.join(map(repr, first))}. Return samples of one form."
        )
    for name, value in arrays.items():
        expected = first[name]
        if (value.shape, value.dtype) != (expected.shape, expected.dtype):
            of_input = f" for the input '{name}'" if name else ""
            raise UserError(
                f"{label}: sample {number} has the shape {value.shape} and the type "
                f"{value.dtype}{of_input}, but sample 0 has {expected.shape} and {expected.dtype}. "
                "Return samples of one form."
            )


def _sample(dataset: Any, number: int, label: str) -> tuple[dict[str, NDArray[Any]], int | None]:
    """Return the inputs of one sample by name, a single one with an empty name, and the class."""
    try:
        sample = dataset[number]
    except Exception as error:  # The code of the user can raise anything.
        raise UserError(
            f"{label}: sample {number} of {len(dataset)} fails: {reason_of(error)}. Correct the "
            "dataset."
        ) from error
    pair = isinstance(sample, tuple | list) and len(sample) == 2
    value, klass = sample if pair else (sample, None)
    arrays = {
        name: _as_input(entry, number, f" for the input '{name}'" if name else "", label)
        for name, entry in by_name(value).items()
    }
    if not arrays:
        raise UserError(f"{label}: sample {number} is an empty dictionary. Return its inputs.")
    return arrays, None if klass is None else _as_class(klass, number, label)


def _as_input(value: Any, number: int, of_input: str, label: str) -> NDArray[Any]:
    """Return one input of a sample. Values of floating-point types become float32."""
    array = _as_array(value)
    if array.dtype.kind not in "fiub" or (array.ndim == 0 and not of_input):
        raise UserError(
            f"{label}: sample {number} is {_described(value)}{of_input}; expected an array or "
            "tensor of numbers, such as an image (C, H, W), a dictionary of these for several "
            "inputs, or a pair of this and a class."
        )
    return np.ascontiguousarray(
        array, np.float32 if array.dtype.kind == "f" else array.dtype
    ).reshape(array.shape)


def _as_array(value: Any) -> NDArray[Any]:
    if hasattr(value, "detach"):
        value = value.detach().cpu().numpy()
    return np.asarray(value if isinstance(value, np.ndarray | np.generic) else None)


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
