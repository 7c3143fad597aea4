"""Steps that run in a process of their own, and what their end means.

The exit status, the signal and the output decide. What a process prints last decides nothing: code
of the user's runs in it, which may print at any time, end the program, or crash it.
"""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lowrank.errors import UserError

# How a step reports a mistake; see `lowrank.steps.common`.
_REPORTED = re.compile(r"^(?:\[[^\]]*\] )?error: (.*)$", re.MULTILINE)

_SHOWN_LINES = 5


def run_step(arguments: Sequence[str], *, output: Path, about: str) -> None:
    """Run `lowrank <arguments>` in a process of its own, which writes `output`.

    `about` begins an error's message: which entry of params.yaml the step is for.

    Raises UserError with the step's own error; where it reported none, with the exit status or the
    signal that ended it and the last lines that it printed. A step that ends with status 0 without
    writing `output` has failed, too.
    """
    before = _version(output)
    command = [sys.executable, "-m", "lowrank.cli", *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode == 0 and _version(output) not in (None, before):
        return
    step = f"`lowrank {arguments[0]}`"
    if done.returncode and (reported := _REPORTED.findall(done.stderr)):
        raise UserError(reported[-1])
    if done.returncode == 0:
        reason = (
            f"{step} ended without an error and without writing {output}. Code that it imports "
            "probably ends the program (os._exit)"
        )
    elif done.returncode < 0:
        reason = f"{step} was ended by {_signal(-done.returncode)}"
    else:
        reason = f"{step} ended with status {done.returncode}"
    raise UserError(f"{about}: {reason}. {_last_lines(done.stderr or done.stdout)}")


def _version(path: Path) -> tuple[int, int] | None:
    """Tells one version of a file from another; None where there is no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


def _signal(number: int) -> str:
    name = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
    meaning = {
        signal.SIGKILL: "the operating system does that when memory runs out",
        signal.SIGSEGV: "compiled code crashed",
        signal.SIGABRT: "compiled code gave up",
        signal.SIGILL: "compiled code is for another processor",
        signal.SIGBUS: "compiled code crashed, or the disk is full",
    }.get(number)
    return f"{name} ({meaning})" if meaning else name


def _last_lines(printed: str) -> str:
    lines = [line for line in printed.strip().splitlines() if line.strip()]
    if not lines:
        return "It printed nothing."
    return "It printed last:\n" + "\n".join(f"    {line}" for line in lines[-_SHOWN_LINES:])
