"""Remove what runs made in this folder, and no other file."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click

from lowrank.core.delivery import own_files
from lowrank.steps.common import Step, say

# Beside the folders of networks.
_IN_BUILD = ("pretrain", "resume", "moments", "latencies", "devices", "first_run")
_OVERVIEW = (
    *("results/summary.csv", "results/summary.md", "results/pictures/summary.html"),
    "results/pictures/accuracy_by_latency.svg",
    "results/pictures/accuracy_by_macs.svg",
    "results/pictures/energy.svg",
)
_OF_A_VARIANT = (
    "results/{}.json",
    "results/metrics/{}.json",
    "results/plots/{}",
    "results/pictures/{}",
)


@click.command(cls=Step)
def clean() -> None:
    """Remove what runs of this folder's params.yaml made, except what Git tracks.

    Datasets, their downloaded archives, weights and DVC's cache stay.
    """
    from lowrank.config.reading import load_params

    params = load_params()
    variants = [f"{model}_{method}" for model in params.checkpoint for method in params.methods]
    tracked, removed, size = _tracked(), 0, 0
    for path in _made(list(params.checkpoint), variants, list(params.studies)):
        for file in _files(path):
            if file in tracked:
                continue
            size += file.lstat().st_size
            file.unlink()
            removed += 1
        _remove_empty(path)
    for folder in (Path("build"), Path("logs"), Path("models")):
        if folder.is_dir() and not folder.is_symlink():
            _remove_empty(folder)
            if kept := sorted(each.name for each in folder.iterdir()) if folder.is_dir() else []:
                say(f"{folder}: kept, because no run of this params.yaml made it: {kept}")
    say(f"{removed} files removed, {size / 1e6:.1f} MB; what Git tracks was left alone")


def _made(models: list[str], variants: list[str], studies: list[str]) -> Iterator[Path]:
    """Files and folders that have the names of what runs make."""
    for name in (*models, *_IN_BUILD):
        yield Path("build", name)
    for folder, _, names in os.walk("logs"):
        yield from (Path(folder, name) for name in names if name.endswith(".log"))
    for name in variants:
        yield from (Path(place.format(name)) for place in _OF_A_VARIANT)
        # Not the folder: a package of the user's may have such a name.
        delivered = Path("models", name)
        yield from (delivered / file for file in own_files(delivered))
    yield from map(Path, _OVERVIEW)
    for study in studies:
        yield from (Path(f"results/studies/{study}.{suffix}") for suffix in ("json", "md", "svg"))


def _files(path: Path) -> list[Path]:
    """The files at or below a path; links are not followed, and none that leads there is."""
    if any(each.is_symlink() for each in (path, *path.parents)):
        return []
    if not path.is_dir():
        return [path] if path.is_file() else []
    return [Path(folder, name) for folder, _, names in os.walk(path) for name in names]


def _remove_empty(path: Path) -> None:
    """Remove the empty folders at or below a path."""
    if path.is_dir() and not path.is_symlink():
        for folder, _, _ in os.walk(path, topdown=False):
            if not any(Path(folder).iterdir()):
                Path(folder).rmdir()


def _tracked() -> set[Path]:
    """The files of this folder that Git tracks. Raises UserError where Git cannot tell."""
    from lowrank.errors import UserError

    command = ["git", "ls-files", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        if any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents)):
            raise UserError(
                "there is no `git` here to say which results it tracks. Nothing was removed."
            ) from None
        return set()
    if done.returncode and b"not a git repository" not in done.stderr:
        raise UserError(
            f"`git ls-files` fails: {done.stderr.decode(errors='replace').strip()}. Nothing was "
            "removed, because Git could not say which results it tracks."
        )
    return {Path(os.fsdecode(name)) for name in done.stdout.split(b"\0") if name}


if __name__ == "__main__":
    clean()
