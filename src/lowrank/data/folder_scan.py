"""List folders of images: with one sub-folder for each class, or without sub-folders and labels.

Sub-folders for classes are the layout of ImageNet, Imagenette and torchvision's `ImageFolder`.
Classes and the order of images equal those of `ImageFolder`, but without importing torchvision,
which takes seconds.
"""

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from lowrank.errors import UserError

# Suffixes that torchvision's ImageFolder accepts as images.
_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class ImageFolder:
    """Image files below a folder: relative POSIX paths and class numbers, in order.

    If `has_labels` is False, the class numbers have no meaning.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    has_labels: bool = True

    def part(self, rows: Iterable[int]) -> "ImageFolder":
        """Return the images with these numbers, in the order of `rows`."""
        rows = list(rows)
        return replace(
            self,
            files=tuple(self.files[row] for row in rows),
            labels=tuple(self.labels[row] for row in rows),
        )


def scan(root: Path, place: str) -> ImageFolder:
    """List the images below `root`.

    Sub-folders are classes, sorted by name, and the files of each class are sorted by path. A
    folder without sub-folders has images without labels, sorted by name. Hidden files and folders
    are skipped, and files without the suffix of an image. `place` is the parameter that messages
    name.

    Raises
    ------
    UserError
        If the folder is missing or contains no image, if a sub-folder contains no image, or if a
        name is not UTF-8.
    """
    if not root.is_dir():
        raise UserError(
            f"{place}: {root} is not a folder. Set it to a folder of images, or to a folder with "
            "one sub-folder of images for each class."
        )
    classes = _sub_folders(root)
    if not classes:
        return _scan_without_classes(root, place)
    by_class = {name: sorted(_images_below(root, name)) for name in classes}
    _require_utf8(place, root, [*classes, *itertools.chain(*by_class.values())])
    require_images(place, root, {name: len(files) for name, files in by_class.items()})
    return ImageFolder(
        root,
        tuple(classes),
        tuple(file for files in by_class.values() for file in files),
        tuple(label for label, files in enumerate(by_class.values()) for _ in files),
    )


def require_images(place: str, root: Path, counts: Mapping[str, int]) -> None:
    """Raise UserError if a class has no image. `counts` holds the number of images by class."""
    if empty := [name for name, count in counts.items() if not count]:
        raise UserError(
            f"{place}: {root} has {len(empty)} of {len(counts)} classes without a readable image: "
            f"{first_names(empty)}. Image files end in {', '.join(sorted(_SUFFIXES))}. Add images, "
            "or remove the sub-folder."
        )


def _scan_without_classes(root: Path, place: str) -> ImageFolder:
    files = tuple(sorted(_images_below(root, ".")))
    if not files:
        raise UserError(
            f"{place}: {root} has neither sub-folders nor images. Expected images, or one "
            "sub-folder of images for each class. Image files end in "
            f"{', '.join(sorted(_SUFFIXES))}."
        )
    _require_utf8(place, root, list(files))
    return ImageFolder(root, (), files, (0,) * len(files), has_labels=False)


def _sub_folders(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir() if path.is_dir() and _visible(path.name))


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _images_below(root: Path, name: str) -> Iterator[str]:
    for folder, sub_folders, files in os.walk(root / name, followlinks=True):
        sub_folders[:] = (
            sub_folder
            for sub_folder in sub_folders
            if _visible(sub_folder) and not _is_cyclic_link(folder, sub_folder)
        )
        for file in files:
            if _visible(file) and Path(file).suffix.lower() in _SUFFIXES:
                yield Path(folder, file).relative_to(root).as_posix()


def _is_cyclic_link(folder: str, name: str) -> bool:
    """Return whether a sub-folder is a link to one of its parents, which would loop forever."""
    link = Path(folder, name)
    return link.is_symlink() and Path(folder).resolve().is_relative_to(link.resolve())


def _require_utf8(place: str, root: Path, names: list[str]) -> None:
    """Raise UserError for names that cannot be written to JSON, cards or a terminal."""
    not_utf8 = [os.fsencode(name) for name in names if not _is_utf8(name)]
    if not_utf8:
        shown = [name.decode(errors="backslashreplace") for name in not_utf8]
        raise UserError(
            f"{place}: {root} has {len(not_utf8)} names that are not UTF-8: {first_names(shown)}. "
            "They come from a system with another encoding. Rename them, for example with "
            f"`convmv -f latin1 -t utf8 -r --notest {root}`."
        )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_same(place: str, one: tuple[str, set[str]], other: tuple[str, set[str]]) -> None:
    """Raise UserError if two named sets of classes differ. `place` is the parameter to name."""
    if message := difference(one, other):
        raise UserError(f"{place}: {one[0]} {message}. Make the classes equal.")


def difference(one: tuple[str, set[str]], other: tuple[str, set[str]]) -> str:
    """Describe how the classes differ, to continue a sentence after the name of `one`.

    Returns an empty string if the classes are equal.
    """
    if one[1] == other[1]:
        return ""
    if not one[1]:
        return "has no sub-folders for its classes"
    only = [
        f"only {place} has {first_names(sorted(names - others))}"
        for (place, names), (_, others) in ((one, other), (other, one))
        if names - others
    ]
    return f"and {other[0]} have different classes: {'; '.join(only)}"


def first_names(names: list[str]) -> str:
    """Return the first five names and the number of the others."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
