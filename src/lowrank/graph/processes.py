"""Run steps in separate processes and report how they ended.

Success is determined from the exit status, the signal and the output file, never from the last
printed line. The process runs code of the user, which may print at any time, end the program, or
crash it.
"""

import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lowrank.errors import UserError

# Line in which a step reports an error; see `lowrank.steps.common`.
_ERROR_LINE = re.compile(r"^(?:\[[^\]]*\] )?error: (.*)$", re.MULTILINE)

_SHOWN_LINES = 5


def run_step(arguments: Sequence[str], *, output: Path, about: str) -> None:
    """Run `lowrank <arguments>` in a separate process, which writes `output`.

    `about` is the entry of params.yaml that the step belongs to. Error messages begin with it.

    Raises UserError with the step's own error message. If the step reported none, the message has
    the exit status or the signal, and the last printed lines. A step that ends with status 0
    without writing `output` has also failed.
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
    if done.returncode and (messages := _ERROR_LINE.findall(done.stderr)):
        raise UserError(messages[-1])
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
    """Return a value that differs between versions of a file, or None if there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns


def _signal(number: int) -> str:
    name = signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"
    meanings: dict[int, str] = {
        signal.SIGKILL: "the operating system sends it when memory runs out",
        signal.SIGSEGV: "compiled code crashed",
        signal.SIGABRT: "compiled code aborted",
        signal.SIGILL: "compiled code was built for another processor",
        signal.SIGBUS: "compiled code crashed, or the disk is full",
    }
    meaning = meanings.get(number)
    return f"{name} ({meaning})" if meaning else name


def _last_lines(printed: str) -> str:
    lines = [line for line in printed.strip().splitlines() if line.strip()]
    if not lines:
        return "It printed nothing."
    return "Last lines printed:\n" + "\n".join(f"    {line}" for line in lines[-_SHOWN_LINES:])
