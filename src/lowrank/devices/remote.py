"""Program that runs on the other machine and measures there as a local device.

    python -m lowrank.devices.remote FOLDER VERB ...

`lowrank.devices.ssh` starts it over SSH, from the copy of this folder that it has sent. The program
prints one JSON object: the answer, or `problem` with a message. FOLDER is the subfolder
`lowrank-device` of the folder that the user names. It contains `models/`, whose files are named by
their hash, `jobs/` and `lock`.

`have HASH ...`            Print how many bytes of each model have arrived, and which are complete.
`receive HASH START SIZE`  Read a model of SIZE bytes from byte START on, from the standard input.
`run JOB`                  Start the request on the standard input, once, and wait for the answer.
                           The work is done in a process of its own. A second `run` of the same job
                           waits for the same process.
`work JOB`                 Do the work of a job. `run` starts this process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.devices.device import DeviceError
from lowrank.devices.local import LocalDevice

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_CHUNK = 1 << 20

# Jobs are removed after a day, even if nobody has read their answers.
_KEPT_SECONDS = 86400

# Time between two checks whether a job is done. It is short compared with a measurement.
_POLL_SECONDS = 0.05


def have(folder: Path, hashes: list[str]) -> dict[str, Any]:
    """Return for each model whether it is complete, and how many bytes have arrived if not."""
    models = folder / "models"
    states = {}
    for expected in hashes:
        part, complete = _part_path(models, expected), _model_path(models, expected)
        # The file may have been altered since it arrived, so its hash is checked every time.
        if is_complete := complete.is_file() and _hash_of(complete) == expected:
            part.unlink(missing_ok=True)
        else:
            complete.unlink(missing_ok=True)
        states[expected] = {
            "whole": is_complete,
            "bytes": part.stat().st_size if part.is_file() else 0,
        }
    return {"models": states}


def receive(folder: Path, expected: str, start: str, size: str) -> dict[str, Any]:
    """Append the standard input to the part of a model that has already arrived.

    Returns `whole`: whether the completed file has the expected hash. If not, the file is removed.
    Raises DeviceError if the data is incomplete, or if another run sends the same model.
    """
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    part = _part_path(models, expected)
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if file.tell() != int(start):
            raise DeviceError(
                "another run is sending the same model. Wait until it ends, then run the command "
                "again."
            )
        shutil.copyfileobj(sys.stdin.buffer, file, _CHUNK)
        arrived = file.tell()
    if arrived < int(size):
        # The connection is lost, so nobody reads this. The next connection sends the rest.
        raise DeviceError(f"only {arrived} of {size} bytes of the model arrived.")
    if _hash_of(part) != expected:
        part.unlink()
        return {"whole": False}
    part.replace(_model_path(models, expected))
    return {"whole": True}


def run(folder: Path, job: str) -> dict[str, Any]:
    """Start the job for the request on the standard input, unless it exists, and wait for it.

    Returns the answer of the job. Raises DeviceError if its process ends without an answer.
    """
    job_folder = folder / "jobs" / job
    request = sys.stdin.buffer.read()
    if not job_folder.is_dir():
        _remove_old_jobs(folder)
        job_folder.mkdir(parents=True)
        (job_folder / "request.json").write_bytes(request)
        with (job_folder / "log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-B", "-m", "lowrank.devices.remote", str(folder), "work", job],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (job_folder / "pid").write_text(str(worker.pid))
    answer = job_folder / "answer.json"
    while not answer.exists():
        if not _is_alive(job_folder):
            log_text = (job_folder / "log").read_text(errors="replace")
            lines = log_text.strip().splitlines() or ["nothing"]
            raise DeviceError(
                "the process that measures ended without an answer. The last line that it printed: "
                f"{lines[-1]}"
            )
        time.sleep(_POLL_SECONDS)
    document: dict[str, Any] = json.loads(answer.read_text())
    return document


def work(folder: Path, job: str) -> dict[str, Any]:
    """Carry out the request of a job while no other job runs, and write the answer for `run`.

    If another job runs, the answer is `busy` with a message.
    """
    job_folder = folder / "jobs" / job
    request = json.loads((job_folder / "request.json").read_text())
    try:
        with _locked(folder / "lock", request["owner"]):
            answer = {"answer": _call_device(folder / "models", request)}
    except _BusyError as error:
        answer = {"busy": str(error)}
    except DeviceError as error:
        answer = {"problem": str(error)}
    partial = job_folder / "answer.part"
    partial.write_text(json.dumps(answer, default=dataclasses.astuple))
    partial.replace(job_folder / "answer.json")
    return {}


def _call_device(models: Path, request: dict[str, Any]) -> Any:
    """Call the requested method of a local device. Models are given by their hashes."""
    settings = request["settings"]
    device = LocalDevice(request["device"], {})
    arguments = [_model_path(models, digest) for digest in request["models"]]
    return getattr(device, request["method"])(*arguments, settings)


class _BusyError(Exception):
    """Raised when another run uses the device. The message names it."""


@contextlib.contextmanager
def _locked(path: Path, owner: str) -> Iterator[None]:
    """Lock the device until the block or the process ends.

    Raises _BusyError if another process holds the lock.
    """
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = json.loads(file.read() or '{"owner": "another run", "since": 0}')
            age = max(time.time() - holder["since"], 0)
            raise _BusyError(
                f"it is busy with a measurement that {holder['owner']} started {age:.0f} s ago"
            ) from None
        file.truncate(0)
        file.write(json.dumps({"owner": owner, "since": time.time()}))
        file.flush()
        yield


def _hash_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            digest.update(chunk)
    return digest.hexdigest()


def _model_path(models: Path, digest: str) -> Path:
    return models / f"{digest}.onnx"


def _part_path(models: Path, digest: str) -> Path:
    return models / f"{digest}.part"


def _is_alive(job_folder: Path) -> bool:
    """Return whether the process of a job is running or may still start."""
    try:
        pid = int((job_folder / "pid").read_text())
    except (OSError, ValueError):
        # The folder exists but the process has no number yet. It starts within seconds or never.
        return time.time() - job_folder.stat().st_mtime < 10
    with contextlib.suppress(ChildProcessError):
        # A child process that has ended still exists until its parent waits for it.
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except OSError:
        return (job_folder / "answer.json").exists()
    return True


def _remove_old_jobs(folder: Path) -> None:
    for job_folder in (folder / "jobs").glob("*"):
        if time.time() - job_folder.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(job_folder, ignore_errors=True)


def main(folder: str, verb: str, *arguments: str) -> None:
    """Carry out a verb and print its answer, or the problem, as JSON."""
    path = Path(folder).expanduser()
    try:
        if verb == "have":
            answer = have(path, list(arguments))
        else:
            verbs: dict[str, Callable[..., Any]] = {"receive": receive, "run": run, "work": work}
            answer = verbs[verb](path, *arguments)
    except DeviceError as error:
        answer = {"problem": str(error)}
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        answer = {
            "problem": f"no space is left for {error.filename or path} on that machine. Free some, "
            "or set `folder` to another folder."
            if full
            else f"{error}."
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
