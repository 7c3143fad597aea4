"""The folder of what a user takes away: which of its files are lowrank's, and their replacement.

The folder may have the name of a package of the user's, or hold notes of theirs. Its `.gitignore`
lists what lowrank wrote there; no other file is replaced or removed.
"""

from collections.abc import Iterable
from pathlib import Path

from lowrank.errors import UserError
from lowrank.files import write_text

_HEADER = "# Written by lowrank, which replaces and removes these files and no others."

# Snakemake marks the time of a folder with it.
_TIMESTAMP = ".snakemake_timestamp"

# Earlier versions ignored the whole folder.
_EARLIER = "*\n"


def own_files(folder: Path) -> set[str]:
    """Return the names of the files in `folder` that lowrank wrote there."""
    try:
        listed = (folder / ".gitignore").read_text()
    except (OSError, UnicodeDecodeError):
        return set()
    if listed == _EARLIER:
        names = {"params.yaml", ".gitignore", _TIMESTAMP}
        names |= {
            path.name
            for suffix in ("onnx", "md")
            for path in folder.glob(f"{folder.name}*.{suffix}")
        }
    elif listed.startswith(_HEADER):
        names = {line.removeprefix("/") for line in listed.splitlines()[1:] if line}
    else:
        return set()
    # A line that was added by hand must not lead out of the folder.
    return {name for name in names if "/" not in name and (folder / name).is_file()}


def replace_own_files(folder: Path, files: Iterable[Path]) -> None:
    """Move `files` into `folder`, in place of those that lowrank wrote there before.

    A process that dies on the way leaves a folder whose files are all listed as lowrank's. Raises
    UserError, and changes nothing, where a file of the user's has one of the names.
    """
    new = {path.name: path for path in files}
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"{folder}: is a file, where the folder for the compressed network is to be. Move it "
            "away and run the same command again."
        )
    old = own_files(folder)
    foreign = sorted(
        name
        for name in {*new, ".gitignore"} - old
        if (folder / name).is_symlink() or (folder / name).exists()
    )
    if foreign:
        raise UserError(
            f"{folder}: holds {', '.join(foreign)}, which lowrank did not write, where it would "
            "write files of these names. Nothing was changed. Move them away, or give the method "
            "or the network another name, and run the same command again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _list_as_own(folder, {*old, *new})
    for name in old - {*new, ".gitignore"}:
        (folder / name).unlink()
    for name, path in new.items():
        path.replace(folder / name)
    _list_as_own(folder, new)


def remove_own_files(folder: Path) -> None:
    """Remove what lowrank wrote into `folder`, and the folder where nothing else is in it."""
    if not folder.is_dir() or folder.is_symlink():
        return
    # The list last, so that a process that dies on the way leaves no file that nobody owns.
    for name in sorted(own_files(folder), key=lambda name: name == ".gitignore"):
        (folder / name).unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _list_as_own(folder: Path, names: Iterable[str]) -> None:
    lines = [_HEADER, *(f"/{name}" for name in sorted({*names, ".gitignore", _TIMESTAMP}))]
    write_text(folder / ".gitignore", "\n".join(lines) + "\n")
