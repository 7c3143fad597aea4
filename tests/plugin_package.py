"""Install the package of tests/plugin for the processes of a test, and run Python with it."""

import os
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent / "plugin"


def install(folder: Path) -> Path:
    """Install the package below `folder`, away from this environment; return where it is."""
    # Setuptools writes into the folder that it builds.
    source = folder / "source"
    subprocess.run(["cp", "-r", PACKAGE, source], check=True)
    target = folder / "installed"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--disable-pip-version-check", "--target", target, source]
    subprocess.run(command, check=True)
    return target


def run_with(installed: Path, *command: str, folder: Path, check: bool = True) -> str:
    """Run a command in a folder, with the package; return its output and errors as one text."""
    search_path = [str(installed), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search_path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if check:
        assert done.returncode == 0, done.stdout
    return done.stdout
