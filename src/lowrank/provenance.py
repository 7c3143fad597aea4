"""Which state of the project made a file."""

import subprocess

# What runs themselves write into tracked files.
_WRITTEN = ("results", "dvc.lock")


def commit() -> str | None:
    """The commit of this folder, with `-dirty` where tracked files differ; None outside Git.

    Results that a run has just written do not count.
    """
    head = _git("rev-parse", "HEAD")
    if not head:
        return None
    others = [f":(exclude){name}" for name in _WRITTEN]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *others)
    return f"{head}-dirty" if changed else head


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
