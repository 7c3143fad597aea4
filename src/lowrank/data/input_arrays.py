"""Store arrays that a network takes as they are: no resizing and no normalization."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lowrank.config.dataset import DatasetSettings
from lowrank.core.tensors import by_name, length
from lowrank.data.folders import NO_LABEL, outputs_of
from lowrank.data.held_out import rows_held_out
from lowrank.data.matching import LABELS
from lowrank.data.obtaining import Say, sha256_of_array
from lowrank.data.samples import arrays_in
from lowrank.data.sources import (
    UNLABELLED,
    replaced_folder,
    write_array,
    write_chunks,
    write_index,
)
from lowrank.errors import UserError
from lowrank.zoo.registry import ARRAY_TYPES

_CHUNK_BYTES = 2**26

# A limit that only mistakes exceed, such as identifiers in place of classes.
_MOST_CLASSES = 1_000_000


@dataclass(frozen=True)
class Samples:
    """Inputs of a network, with their classes.

    Attributes
    ----------
    source
        File or function that they come from, for messages.
    inputs
        Inputs as they are, (N, ...), or arrays by the names of several inputs.
    labels
        Class of each input, (N,). None if the classes are not known.
    rows
        Rows of `inputs` and `labels` that belong to the samples. None: all.
    """

    source: str
    inputs: Any
    labels: NDArray[np.int64] | None = None
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return length(self.inputs)

    @property
    def used_rows(self) -> NDArray[np.int64]:
        """Rows of the samples."""
        return np.arange(len(self)) if self.rows is None else self.rows


def store_arrays(output: Path, name: str, settings: DatasetSettings, say: Say) -> None:
    """Store .npy or .npz files in the format that `lowrank.data.datasets.open_dataset` reads.

    Without `settings.validation`, test samples are held out of the training samples.

    Raises
    ------
    UserError
        If a file is missing or holds no usable array (see `samples_in` and `store_samples`), or if
        `output` cannot be written.
    """
    place = f"dataset.{name}"
    files = {"train": settings.train, "validation": settings.validation}
    train, test = (
        samples_in(Path(file), f"{place}.{part}") if file else None for part, file in files.items()
    )
    if train is None:
        raise UserError(f"{place}: kind arrays needs `train`.")
    store_samples(output, name, settings.outputs, train, test, say)


def samples_in(path: Path, place: str) -> Samples:
    """Read the inputs of an .npy file, or the inputs and `labels` of an .npz file.

    Several inputs are arrays by name.

    Raises
    ------
    UserError
        If the file is missing or not readable, if it has no inputs, or if arrays have different
        lengths. `place` is the parameter that messages name.
    """
    arrays = arrays_in(path, place)
    labels = arrays.pop(LABELS, None)
    if not arrays:
        raise UserError(
            f"{place}: {path} has no arrays of inputs; expected one, or one for each input of the "
            f"network, and optionally classes as `{LABELS}`."
        )
    classes = None if labels is None else _checked_labels(labels, place)
    return Samples(str(path), as_inputs(arrays), classes)


def as_inputs(arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Return a single array without its name, which does not matter, or several arrays by name."""
    return next(iter(arrays.values())) if len(arrays) == 1 else dict(arrays)


def _checked_labels(labels: NDArray[Any], place: str) -> NDArray[np.int64]:
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise UserError(
            f"{place}: `{LABELS}` has the shape {labels.shape} and the type {labels.dtype}; "
            "expected one class for each sample, as a whole number from 0."
        )
    return labels.astype(np.int64)


def store_samples(
    output: Path,
    name: str,
    outputs: Mapping[str, int] | None,
    train: Samples,
    test: Samples | None,
    say: Say,
) -> None:
    """Store inputs of a network as a dataset. Classes are called by their numbers.

    Parameters
    ----------
    output
        Folder to write.
    name
        Name of the dataset.
    outputs
        Network output for each class; None if the outputs are the classes.
    train
        Training samples.
    test
        Test samples. None: a fifth of the training samples are held out.
    say
        Called with lines of progress.

    Raises
    ------
    UserError
        If inputs have an unusable shape or type, or values that are not finite; if training and
        test inputs differ in shape or type; or if `output` cannot be written.
    """
    place = f"dataset.{name}"
    _check_inputs(train, place)
    if test is None:
        labels = np.zeros(len(train)) if train.labels is None else train.labels
        held_out = rows_held_out(labels, f"{place}: {train.source}")
        say(
            f"{place}: without `validation`, {len(held_out)} of {len(train)} samples in "
            f"{train.source} are held out as test samples"
        )
        test = replace(train, rows=held_out)
        train = replace(train, rows=np.setdiff1d(train.used_rows, held_out))
    else:
        _check_inputs(test, place)
        _check_same_form(train, test, place)
        if isinstance(train.inputs, dict):
            test = replace(test, inputs={name: test.inputs[name] for name in train.inputs})
    parts = {"train": train, "test": test}
    classes = _classes(parts, place)
    reasons = {
        UNLABELLED[key]: f"{part.source} has no labels"
        for key, part in parts.items()
        if part.labels is None
    }
    mapping = outputs_of(classes, outputs, f"{place}.outputs")
    with replaced_folder(output) as new:
        splits = {key: _store_part(new, key, part, place) for key, part in parts.items()}
        names = {"inputs": list(train.inputs)} if isinstance(train.inputs, dict) else {}
        entries = {"form": "inputs", **names, "splits": splits, **reasons}
        write_index(new, name, classes, mapping, entries)


def _classes(parts: Mapping[str, Samples], place: str) -> tuple[str, ...]:
    """Return the numbers of the classes as names; none without labels."""
    labels = [part.labels for part in parts.values() if part.labels is not None]
    largest = max((int(array.max()) for array in labels), default=-1)
    if largest >= _MOST_CLASSES:
        raise UserError(
            f"{place}: a sample has the class {largest}; expected numbers below {_MOST_CLASSES}, "
            "which are the network's outputs. Number the classes from 0."
        )
    return tuple(map(str, range(largest + 1)))


def _check_inputs(samples: Samples, place: str) -> None:
    arrays = by_name(samples.inputs)
    for name, inputs in arrays.items():
        array = f"array '{name}'" if name else "array of inputs"
        found = f"{place}: {samples.source}: the {array} has"
        # One of several inputs may be a number for each sample.
        if inputs.ndim < (1 if name else 2) or 0 in inputs.shape:
            raise UserError(
                f"{found} the shape {inputs.shape}; expected (samples, ...), such as (samples, "
                "channels, height, width), without empty axes."
            )
        if inputs.dtype.name not in ARRAY_TYPES:
            raise UserError(
                f"{found} the type {inputs.dtype}; expected one of {', '.join(ARRAY_TYPES)}, as "
                "the network takes it. Convert it, for example with `array.astype('float32')`."
            )


def _check_same_form(train: Samples, test: Samples, place: str) -> None:
    first, second = by_name(train.inputs), by_name(test.inputs)
    if first.keys() != second.keys():
        listed = [", ".join(map(repr, arrays)) for arrays in (first, second)]
        raise UserError(
            f"{place}: {train.source} has the inputs {listed[0]}, but {test.source} has "
            f"{listed[1]}. Make them equal."
        )
    for name in first:
        forms = [(array.shape[1:], array.dtype.name) for array in (first[name], second[name])]
        if forms[0] != forms[1]:
            of_input = f" for the input '{name}'" if name else ""
            raise UserError(
                f"{place}: a sample of {train.source} has the shape {forms[0][0]} and the type "
                f"{forms[0][1]}{of_input}, but one of {test.source} has {forms[1][0]} and "
                f"{forms[1][1]}. Make them equal."
            )


def _store_part(folder: Path, key: str, part: Samples, place: str) -> dict[str, Any]:
    """Write one part, and return its entries for the index."""
    rows, digest = part.used_rows, hashlib.sha256()

    def chunks(inputs: NDArray[Any], native: np.dtype) -> Iterator[NDArray[Any]]:
        count = max(1, _CHUNK_BYTES // inputs[:1].nbytes)
        for start in range(0, len(rows), count):
            numbers = rows[start : start + count]
            chunk = np.ascontiguousarray(inputs[numbers], native)
            _require_finite(chunk, numbers, part.source, place)
            digest.update(chunk.data)
            yield chunk

    for number, (name, inputs) in enumerate(by_name(part.inputs).items()):
        file = f"{key}_input{number}.npy" if name else f"{key}_inputs.npy"
        native, shape = inputs.dtype.newbyteorder("="), (len(rows), *inputs.shape[1:])
        write_chunks(folder / file, native, shape, chunks(inputs, native))
    labels = np.full(len(rows), NO_LABEL) if part.labels is None else part.labels[rows]
    label_array = np.ascontiguousarray(labels, np.int32)
    write_array(folder / f"{key}_labels.npy", label_array)
    return {
        "images": len(rows),
        "sha256": {"images": digest.hexdigest(), "labels": sha256_of_array(label_array)},
    }


def _require_finite(
    chunk: NDArray[Any], numbers: NDArray[np.int64], source: str, place: str
) -> None:
    finite = np.isfinite(chunk).reshape(len(chunk), -1).all(1)
    if not finite.all():
        raise UserError(
            f"{place}: {source}: sample {numbers[finite.argmin()]} (from 0) has values that "
            "are not finite (NaN or infinity). Correct or remove it."
        )
