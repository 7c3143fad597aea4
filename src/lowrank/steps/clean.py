"""Remove the files that runs have made in this folder, and no others."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click

from lowrank.core.delivery import own_files
from lowrank.steps.common import Step, say

# Folders and files in `build` other than the folders of networks.
_IN_BUILD = ("pretrain", "resume", "moments", "latencies", "devices", "first_run")
_OVERVIEW = (
    *("results/summary.csv", "results/summary.md", "results/pictures/summary.html"),
    "results/pictures/accuracy_by_latency.svg",
    "results/pictures/accuracy_by_macs.svg",
    "results/pictures/energy.svg",
)
_VARIANT_PATHS = (
    "results/{}.json",
    "results/metrics/{}.json",
    "results/plots/{}",
    "results/pictures/{}",
)


@click.command(cls=Step)
def clean() -> None:
    """Remove the files that runs of this folder's params.yaml have made.

    Files that Git tracks, datasets, downloaded archives, weights and DVC's cache are kept.
    """
    from lowrank.config.reading import load_params

    params = load_params()
    variants = [f"{model}_{method}" for model in params.checkpoint for method in params.methods]
    tracked, removed, size = _tracked(), 0, 0
    for path in _paths_of_runs(list(params.checkpoint), variants, list(params.studies)):
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
            if kept := sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []:
                say(f"{folder}: kept, because no run of this params.yaml made it: {kept}")
    say(f"{removed} files removed, {size / 1e6:.1f} MB; files that Git tracks were kept")


def _paths_of_runs(models: list[str], variants: list[str], studies: list[str]) -> Iterator[Path]:
    """Yield the paths of files and folders that runs make."""
    for name in (*models, *_IN_BUILD):
        yield Path("build", name)
    for folder, _, names in os.walk("logs"):
        yield from (Path(folder, name) for name in names if name.endswith(".log"))
    for name in variants:
        yield from (Path(pattern.format(name)) for pattern in _VARIANT_PATHS)
        # Only lowrank's own files, because the folder may also be a package of the user.
        delivered = Path("models", name)
        yield from (delivered / file for file in own_files(delivered))
    yield from map(Path, _OVERVIEW)
    for study in studies:
        yield from (Path(f"results/studies/{study}.{suffix}") for suffix in ("json", "md", "svg"))


def _files(path: Path) -> list[Path]:
    """Return the files at or below a path. Return none if the path goes through a link."""
    if any(part.is_symlink() for part in (path, *path.parents)):
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
    """Return the files of this folder that Git tracks. Raises UserError if Git fails."""
    from lowrank.errors import UserError

    command = ["git", "ls-files", "-z"]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except FileNotFoundError:
        if any((folder / ".git").exists() for folder in (Path.cwd(), *Path.cwd().parents)):
            raise UserError(
                "`git` is not installed, so it is not known which results it tracks. Nothing was "
                "removed. Install Git, then run this command again."
            ) from None
        return set()
    if done.returncode and b"not a git repository" not in done.stderr:
        raise UserError(
            f"`git ls-files` fails: {done.stderr.decode(errors='replace').strip()}. Nothing was "
            "removed, because it is not known which results Git tracks."
        )
    return {Path(os.fsdecode(name)) for name in done.stdout.split(b"\0") if name}


if __name__ == "__main__":
    clean()
