"""Folders of images: a sub-folder for each class, and the files in it.

This is the layout of ImageNet, Imagenette and torchvision's `ImageFolder`, which gives the same
classes and the same order of images. It is read without torchvision, whose import takes seconds.
"""

import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lowrank.errors import UserError

# What torchvision's ImageFolder takes for an image.
_SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class ImageFolder:
    """Image files below a folder: paths (posix, relative) and classes (by number), in order.

    Where it is not `labelled`, the numbers mean nothing.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    labelled: bool = True


def scan(root: Path, place: str) -> ImageFolder:
    """List the images below `root`, whose sub-folders are the classes.

    Classes are sorted by name, and within one the files by path. Hidden files and folders are
    left out, and so is what is no image by its suffix. `place` is the parameter to blame.

    Raises
    ------
    UserError
        When the folder is missing, has no sub-folders, or one of them holds no image; when a name
        is not UTF-8.
    """
    if not root.is_dir():
        raise UserError(f"{place}: {root} is no folder. Name one with a sub-folder for each class.")
    classes = sorted(each.name for each in root.iterdir() if each.is_dir() and _visible(each.name))
    if not classes:
        raise UserError(
            f"{place}: {root} has no sub-folders. One for each class was expected, with its images."
        )
    by_class = {name: sorted(_images_below(root, name)) for name in classes}
    _require_utf8(place, root, [*classes, *itertools.chain(*by_class.values())])
    require_images(place, root, {name: len(found) for name, found in by_class.items()})
    return ImageFolder(
        root,
        tuple(classes),
        tuple(name for found in by_class.values() for name in found),
        tuple(label for label, found in enumerate(by_class.values()) for _ in found),
    )


def require_images(place: str, root: Path, counts: Mapping[str, int]) -> None:
    """Raise UserError when a class, by name, has no image."""
    if empty := [name for name, count in counts.items() if not count]:
        raise UserError(
            f"{place}: {root} has {len(empty)} of {len(counts)} classes without an image that can "
            f"be read: {some(empty)}. Images end in {', '.join(sorted(_SUFFIXES))}. Put some "
            "there, or remove the sub-folder."
        )


def scan_for_training(root: Path, place: str) -> ImageFolder:
    """Scan a folder like `scan`; images without a sub-folder for each class have no labels."""
    if not root.is_dir() or any(each.is_dir() and _visible(each.name) for each in root.iterdir()):
        return scan(root, place)
    files = tuple(sorted(_images_below(root, ".")))
    if not files:
        raise UserError(
            f"{place}: {root} has neither sub-folders nor images. One sub-folder for each class "
            f"was expected, with its images, which end in {', '.join(sorted(_SUFFIXES))}."
        )
    return ImageFolder(root, (), files, (0,) * len(files), labelled=False)


def _visible(name: str) -> bool:
    return not name.startswith(".")


def _images_below(root: Path, name: str) -> Iterator[str]:
    for folder, below, files in os.walk(root / name, followlinks=True):
        below[:] = (each for each in below if _visible(each) and not _leads_back(folder, each))
        for file in files:
            if _visible(file) and Path(file).suffix.lower() in _SUFFIXES:
                yield Path(folder, file).relative_to(root).as_posix()


def _leads_back(folder: str, name: str) -> bool:
    """Whether a sub-folder is a link to a folder that it is in: following it would never end."""
    link = Path(folder, name)
    return link.is_symlink() and Path(folder).resolve().is_relative_to(link.resolve())


def _require_utf8(place: str, root: Path, names: list[str]) -> None:
    """Raise UserError for names that no JSON document, card or terminal can show."""
    bad = [os.fsencode(name) for name in names if not _is_utf8(name)]
    if bad:
        shown = [name.decode(errors="backslashreplace") for name in bad]
        raise UserError(
            f"{place}: {root} holds {len(bad)} names that are not UTF-8: {some(shown)}. They come "
            "from a system with another encoding; rename them, for example with "
            f"`convmv -f latin1 -t utf8 -r --notest {root}`."
        )


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_same(place: str, one: tuple[str, set[str]], other: tuple[str, set[str]]) -> None:
    """Raise UserError, which blames the parameter `place`, where two sets of classes differ."""
    if differing := difference(one, other):
        raise UserError(f"{place}: {one[0]} {differing}. Make them the same.")


def difference(one: tuple[str, set[str]], other: tuple[str, set[str]]) -> str:
    """How the classes differ, to be read after the name of `one`; empty where they do not."""
    if one[1] == other[1]:
        return ""
    if not one[1]:
        return "has no sub-folders, which would be its classes"
    only = [
        f"only {here} has {some(sorted(names - others))}"
        for (here, names), (_, others) in ((one, other), (other, one))
        if names - others
    ]
    return f"and {other[0]} have different classes: {'; '.join(only)}"


def some(names: list[str]) -> str:
    """Return the first five names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
