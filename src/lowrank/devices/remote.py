"""What runs on the other machine: a program over the device that it is.

    python -m lowrank.devices.remote FOLDER VERB ...

It is started over SSH by `lowrank.devices.ssh`, in the copy of this folder that was sent there, and
prints one JSON object: the answer, or `problem` with a message. FOLDER holds `models/`, by their
hash, `jobs/` and `lock`; it is `lowrank-device` below the one that the user names.

`have HASH ...`      How many bytes of each model are here, and which are whole by their hash.
`receive HASH AT OF` The rest of a model of OF bytes, from byte AT on, from the standard input.
`run JOB`            Do the request on the standard input, once, and wait for the answer. The work
                     is a process of its own: a second `run` of the same job waits for the same one.
`work JOB`           That process.
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
    from collections.abc import Iterator

_CHUNK = 1 << 20

# Answers that nobody fetched are of no use after a day.
_KEPT_SECONDS = 86400

# Between looks at whether a job is done: short beside what a measurement takes.
_POLL_SECONDS = 0.05


def have(folder: Path, hashes: list[str]) -> dict[str, Any]:
    """For each model whether it is whole, and how many bytes of it are here."""
    models = folder / "models"
    found = {}
    for each in hashes:
        part, whole = _part(models, each), _whole(models, each)
        # A disk, or somebody, may have altered it since it arrived.
        if is_whole := whole.is_file() and _hash_of(whole) == each:
            part.unlink(missing_ok=True)
        else:
            whole.unlink(missing_ok=True)
        found[each] = {
            "whole": is_whole,
            "bytes": part.stat().st_size if part.is_file() else 0,
        }
    return {"models": found}


def receive(folder: Path, expected: str, start: str, size: str) -> dict[str, Any]:
    """Append the standard input to what is here of a model.

    The answer's `whole` says whether that is the right one; if not, nothing of it is kept.
    """
    models = folder / "models"
    models.mkdir(parents=True, exist_ok=True)
    part = _part(models, expected)
    with part.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if file.tell() != int(start):
            raise DeviceError("another run sends the same model. Wait for it, then run again.")
        shutil.copyfileobj(sys.stdin.buffer, file, _CHUNK)
        arrived = file.tell()
    if arrived < int(size):
        # The connection is gone, and so is who would read this; the next one goes on from here.
        raise DeviceError(f"{arrived} of {size} bytes of the model arrived.")
    if _hash_of(part) != expected:
        part.unlink()
        return {"whole": False}
    part.replace(_whole(models, expected))
    return {"whole": True}


def run(folder: Path, job: str) -> dict[str, Any]:
    """Start the request on the standard input unless it was, and wait for its answer."""
    place = folder / "jobs" / job
    request = sys.stdin.buffer.read()
    if not place.is_dir():
        _forget_old_jobs(folder)
        place.mkdir(parents=True)
        (place / "request.json").write_bytes(request)
        with (place / "log").open("wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-B", "-m", "lowrank.devices.remote", str(folder), "work", job],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (place / "pid").write_text(str(worker.pid))
    answer = place / "answer.json"
    while not answer.exists():
        if not _is_alive(place):
            last = (place / "log").read_text(errors="replace").strip().splitlines() or ["nothing"]
            raise DeviceError(f"the measuring process ended without an answer; it said: {last[-1]}")
        time.sleep(_POLL_SECONDS)
    return json.loads(answer.read_text())


def work(folder: Path, job: str) -> dict[str, Any]:
    """Do the request of a job, alone on this device, and leave the answer for `run`."""
    place = folder / "jobs" / job
    request = json.loads((place / "request.json").read_text())
    try:
        with _locked(folder / "lock", request["owner"]):
            answer = {"answer": _called(folder / "models", request)}
    except DeviceError as error:
        answer = {"problem": str(error)}
    partial = place / "answer.part"
    partial.write_text(json.dumps(answer, default=dataclasses.astuple))
    partial.replace(place / "answer.json")
    return {}


def _called(models: Path, request: dict[str, Any]) -> Any:
    """One of the methods of a device, with models by their hash."""
    settings = request["settings"]
    device = LocalDevice(request["device"], {})
    arguments = [_whole(models, each) for each in request["models"]]
    return getattr(device, request["method"])(*arguments, settings)


@contextlib.contextmanager
def _locked(path: Path, owner: str) -> Iterator[None]:
    """Hold the device; DeviceError where another one does. The lock goes with the process."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = json.loads(file.read() or '{"owner": "another run", "since": 0}')
            age = max(time.time() - holder["since"], 0)
            raise DeviceError(
                f"it is busy with a measurement that {holder['owner']} started {age:.0f} s ago. "
                "Two at a time would slow each other: wait for that one, or end it."
            ) from None
        file.truncate(0)
        file.write(json.dumps({"owner": owner, "since": time.time()}))
        file.flush()
        yield


def _hash_of(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in iter(lambda: file.read(_CHUNK), b""):
            found.update(chunk)
    return found.hexdigest()


def _whole(models: Path, digest: str) -> Path:
    return models / f"{digest}.onnx"


def _part(models: Path, digest: str) -> Path:
    return models / f"{digest}.part"


def _is_alive(place: Path) -> bool:
    """Whether the worker of a job still runs, or may not have begun."""
    try:
        pid = int((place / "pid").read_text())
    except (OSError, ValueError):
        # Between the making of the folder and the start; long after, there was none.
        return time.time() - place.stat().st_mtime < 10
    with contextlib.suppress(ChildProcessError):
        # A child of this process that has ended is still there until it is asked for.
        os.waitpid(pid, os.WNOHANG)
    try:
        os.kill(pid, 0)
    except OSError:
        return (place / "answer.json").exists()
    return True


def _forget_old_jobs(folder: Path) -> None:
    for place in (folder / "jobs").glob("*"):
        if time.time() - place.stat().st_mtime > _KEPT_SECONDS:
            shutil.rmtree(place, ignore_errors=True)


def main(folder: str, verb: str, *arguments: str) -> None:
    """Answer in JSON, whatever happens."""
    place = Path(folder).expanduser()
    try:
        if verb == "have":
            answer = have(place, list(arguments))
        else:
            answer = {"receive": receive, "run": run, "work": work}[verb](place, *arguments)
    except DeviceError as error:
        answer = {"problem": str(error)}
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        answer = {
            "problem": f"no space is left for {error.filename or place} there. Free some, or name "
            "another `folder`."
            if full
            else f"{error}."
        }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
