"""The folder that the user takes away: which files in it lowrank wrote, and how it replaces them.

The folder may have the name of the user's own package, or hold the user's notes. Its `.gitignore`
lists the files that lowrank wrote. No other file is replaced or removed.
"""

from collections.abc import Iterable
from pathlib import Path

from lowrank.errors import UserError
from lowrank.files import write_text

_HEADER = "# Written by lowrank, which replaces and removes these files and no others."

# Snakemake stores the modification time of a folder in this file.
_TIMESTAMP = ".snakemake_timestamp"

# Earlier versions ignored the whole folder.
_OLD_GITIGNORE = "*\n"


def own_files(folder: Path) -> set[str]:
    """Return the names of the files in `folder` that lowrank wrote."""
    try:
        gitignore = (folder / ".gitignore").read_text()
    except (OSError, UnicodeDecodeError):
        return set()
    if gitignore == _OLD_GITIGNORE:
        names = {"params.yaml", ".gitignore", _TIMESTAMP}
        names |= {
            path.name
            for suffix in ("onnx", "md")
            for path in folder.glob(f"{folder.name}*.{suffix}")
        }
    elif gitignore.startswith(_HEADER):
        names = {line.removeprefix("/") for line in gitignore.splitlines()[1:] if line}
    else:
        return set()
    # A line that a user added by hand must not point outside the folder.
    return {name for name in names if "/" not in name and (folder / name).is_file()}


def replace_own_files(folder: Path, files: Iterable[Path]) -> None:
    """Move `files` into `folder`, in place of the files that lowrank wrote before.

    If the process dies halfway, `.gitignore` still lists every file that lowrank wrote to the
    folder. Raises UserError and changes nothing if one of the names belongs to a file of the user.
    """
    new = {path.name: path for path in files}
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"{folder}: is a file; a folder for the compressed network was expected. Move the "
            "file away and run the same command again."
        )
    old = own_files(folder)
    foreign = sorted(
        name
        for name in {*new, ".gitignore"} - old
        if (folder / name).is_symlink() or (folder / name).exists()
    )
    if foreign:
        raise UserError(
            f"{folder}: contains {', '.join(foreign)}. lowrank would write files with these names, "
            "but did not write the existing ones. Nothing was changed. Move them away, or give the "
            "method or the network another name, and run the same command again."
        )
    folder.mkdir(parents=True, exist_ok=True)
    _list_as_own(folder, {*old, *new})
    for name in old - {*new, ".gitignore"}:
        (folder / name).unlink()
    for name, path in new.items():
        path.replace(folder / name)
    _list_as_own(folder, new)


def remove_own_files(folder: Path) -> None:
    """Remove the files that lowrank wrote into `folder`, and the folder if it is then empty."""
    if not folder.is_dir() or folder.is_symlink():
        return
    # The list goes last. If the process dies halfway, no unlisted file of lowrank is left behind.
    for name in sorted(own_files(folder), key=lambda name: name == ".gitignore"):
        (folder / name).unlink()
    if not any(folder.iterdir()):
        folder.rmdir()


def _list_as_own(folder: Path, names: Iterable[str]) -> None:
    lines = [_HEADER, *(f"/{name}" for name in sorted({*names, ".gitignore", _TIMESTAMP}))]
    write_text(folder / ".gitignore", "\n".join(lines) + "\n")
