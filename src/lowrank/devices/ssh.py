"""Measure on another machine through the system's OpenSSH client.

Keys, jump hosts and multiplexing come from the user's SSH configuration. This folder and the models
are sent once each and checked by their hashes. The other machine needs Python, NumPy and the
runtime.
"""

from __future__ import annotations

import dataclasses
import getpass
import hashlib
import io
import json
import logging
import re
import socket
import tarfile
import time
import uuid
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.devices.device import DeviceError, NodeTime
from lowrank.devices.kind import DeviceKind
from lowrank.devices.measure_settings import MeasureSettings, setting
from lowrank.devices.remote_scripts import CLEAN, FOLDER, PREPARE
from lowrank.devices.runtime import get_runtime
from lowrank.devices.ssh_link import LostError, SshLink

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# -B: Python writes no compiled files, because a full disk would leave truncated ones.
_PYTHON_OPTIONS = ("-B", "-c")

# Longest time to wait while another run measures on the other machine.
_LONGEST_WAIT_SECONDS = 3600.0
_SECONDS_BETWEEN_TRIES = 2.0

_logger = logging.getLogger(__name__)

# A `host` is a name, an address, `user@host` or `ssh://user@host:port`. The pattern excludes text
# that the client could read as an option, or that a configuration could pass to a shell.
_HOST = r"^[A-Za-z0-9_\[][A-Za-z0-9_.:@%/\[\]-]*$"


@dataclasses.dataclass(frozen=True)
class SshSettings:
    """How a machine is reached over SSH, and where Python and the files that are sent are there."""

    host: str = setting(
        "Host name of the machine for the SSH client, as in ~/.ssh/config, or an address or "
        "`user@host`, without options.",
        pattern=_HOST,
    )
    python: str = setting("Python interpreter on the other machine.", default="python3", path=True)
    folder: str = setting(
        "Folder on the other machine for the files that lowrank sends.",
        default="~/.cache/lowrank",
        path=True,
    )
    command: str = setting(
        "Command of the OpenSSH client, with options such as `-F`, `-i` and `-p`.",
        default="ssh",
        pattern=".+",
    )


class SshDevice:
    """A device that runs models on another machine over SSH.

    It is created as `DeviceKind.create_device` says. Raises DeviceError if `command` is not the
    OpenSSH client.
    """

    def __init__(self, name: str, settings: dict[str, Any], own: SshSettings) -> None:
        self.name = name
        self._settings = settings
        self._link = SshLink(own.host, own.python, own.folder, own.command)
        self._remote: dict[str, str] = {}

    def measure(self, original: Path, compressed: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Measure two ONNX models in alternating turns on the other machine: `Device.measure`."""
        answer: dict[str, Any] = self._ask("measure", [original, compressed], settings)
        return answer

    def lacks_int8(self, model: Path, settings: dict[str, Any]) -> str | None:
        """See `Device.lacks_int8`."""
        answer: str | None = self._ask("lacks_int8", [model], settings)
        return answer

    def environment(self, settings: dict[str, Any]) -> dict[str, Any]:
        """See `Device.environment`."""
        answer: dict[str, Any] = self._ask("environment", [], settings)
        return answer

    def describe(self, settings: dict[str, Any]) -> dict[str, Any]:
        """See `Device.describe`."""
        answer: dict[str, Any] = self._ask("describe", [], settings)
        return answer

    def outputs(self, model: Path, settings: dict[str, Any]) -> list[list[float]]:
        """See `Device.outputs`."""
        answer: list[list[float]] = self._ask("outputs", [model], settings)
        return answer

    def answers(self, model: Path, images: Path, settings: dict[str, Any]) -> list[list[float]]:
        """See `Device.answers`."""
        answer: list[list[float]] = self._ask("answers", [model, images], settings)
        return answer

    def node_times(self, model: Path, settings: dict[str, Any]) -> dict[str, NodeTime]:
        """See `Device.node_times`."""
        fields_by_node = self._ask("node_times", [model], settings)
        return {name: NodeTime(*fields) for name, fields in fields_by_node.items()}

    def clean(self) -> dict[str, Any]:
        """Remove the files that were sent to the other machine, and no others.

        Returns a dict with `folder`, the machine and the folder there as a text for the user; the
        number of `removed` files; and the names of the files that `stay` because lowrank did not
        create them. Raises DeviceError if a measurement is running.
        """
        link = self._link
        command = [link.python, *_PYTHON_OPTIONS, FOLDER + CLEAN, link.folder]
        report = self._retry_once(lambda: link.json(command))
        _require_usable(report, link)
        return {**report, "folder": f"{link.host}: {report['folder']}"}

    def _ask(self, method: str, models: list[Path], settings: dict[str, Any]) -> Any:
        """Call a method of the device on the other machine, once even if the connection is lost."""
        hashes = [_digest(Path(model)) for model in models]
        digests = dict(zip(hashes, map(Path, models)))  # noqa: B905  (`strict` is Python 3.10's)
        for digest, model in digests.items():
            self._retry_once(partial(self._send, digest, model))
        request = {
            "method": method,
            "models": hashes,
            "device": self.name,
            "settings": {**self._settings, **settings},
            "owner": f"{getpass.getuser()} at {socket.gethostname()}",
        }
        try:
            return self._run_when_free(json.dumps(request).encode())
        except DeviceError as error:
            # Replace the paths on the other machine by the paths on this one.
            message = str(error)
            for digest, model in digests.items():
                message = re.sub(rf"\S*{digest}\.onnx", str(model), message)
            raise DeviceError(message) from error

    def _run_when_free(self, request: bytes) -> Any:
        """Run a request on the other machine, after waiting for the run that uses it, if any."""
        end, has_said = time.monotonic() + _LONGEST_WAIT_SECONDS, False
        while True:
            call = partial(self._call, "run", uuid.uuid4().hex, data=request)
            answer = self._retry_once(call)
            if "busy" not in answer:
                return answer["answer"]
            if time.monotonic() >= end:
                raise DeviceError(
                    f"{self._link.host}: {answer['busy']}. Two measurements at the same time would "
                    "slow each other. Stop that one, or run the same command again when it has "
                    "ended."
                )
            if not has_said:
                _logger.info("%s: %s; waiting for it to end", self._link.host, answer["busy"])
                has_said = True
            time.sleep(_SECONDS_BETWEEN_TRIES)

    def _send(self, digest: str, model: Path) -> None:
        """Send a model, or the rest of it if a part has already arrived.

        A copy on the other machine is used only if its hash is right. If the completed file has a
        wrong hash, the model is sent once more from the start.
        """
        for _ in range(2):
            state = self._call("have", digest)["models"][digest]
            if state["whole"]:
                return
            with model.open("rb") as file:
                file.seek(state["bytes"])
                size = model.stat().st_size
                result = self._call("receive", digest, str(state["bytes"]), str(size), data=file)
            if result["whole"]:
                return
        raise DeviceError(
            f"{self._link.host}: {model} arrived with a wrong hash twice. Check the disk of that "
            "machine."
        )

    def _call(self, verb: str, *arguments: str, data: Any = b"") -> dict[str, Any]:
        """Run `lowrank.devices.remote` on the other machine and return its answer.

        Raises DeviceError if the answer is a problem.
        """
        remote = self._prepared()
        code = "import os, sys; os.chdir(sys.argv.pop(1)); sys.path.insert(0, '')"
        code += "; os.environ['PYTHONDONTWRITEBYTECODE'] = '1'"
        code += "; import runpy; runpy.run_module('lowrank.devices.remote', run_name='__main__')"
        command = [self._link.python, *_PYTHON_OPTIONS, code]
        command += [remote["room"], remote["folder"], verb, *arguments]
        answer = self._link.json(command, data)
        if "problem" in answer:
            raise DeviceError(f"{self._link.host}: {answer['problem']}")
        return answer

    def _prepared(self) -> dict[str, str]:
        """Send this folder once and return the description of the other machine."""
        if not self._remote:
            room, digest = _packed_room()
            link = self._link
            packages = ["numpy", get_runtime(MeasureSettings.of(self._settings)).package]
            command = [link.python, *_PYTHON_OPTIONS, FOLDER + PREPARE, link.folder, digest]
            report = self._retry_once(lambda: link.json([*command, *packages], room))
            _require_usable(report, link, packages)
            self._remote = report
        return self._remote

    def _retry_once(self, attempt: Callable[[], Any]) -> Any:
        """Try again once if the connection is lost. Data that has arrived is not sent again."""
        try:
            return attempt()
        except LostError:
            try:
                return attempt()
            except LostError as error:
                raise DeviceError(
                    f"{self._link.host}: the connection was lost twice ({error}). Measurements on "
                    "other devices are kept. Check the network, then run the same command again."
                ) from error


def _require_usable(report: dict[str, Any], link: SshLink, packages: Sequence[str] = ()) -> None:
    """Raise DeviceError if the machine lacks something. The message says how to install it.

    `packages` are the Python packages that it needs.
    """
    host, python, names = link.host, link.python, " ".join(packages)
    if "old" in report:
        raise DeviceError(
            f"{host}: '{python}' is Python {report['old']}; 3.9 or later is needed. Install one, "
            "and set `python` to its path."
        )
    if "refused" in report:
        raise DeviceError(f"{host}: {report['refused']}")
    if "problem" in report:
        raise DeviceError(
            f"{host}: cannot write to {link.folder} ({report['problem']}). Free some space, or set "
            "`folder` to another folder."
        )
    if "missing" in report:
        raise DeviceError(
            f"{host}: {report['python']} has no {report['missing']}. Install it: "
            f"`ssh {host} {python} -m pip install {names}`."
        )
    if "broken" in report:
        raise DeviceError(
            f"{host}: {report['broken']} does not load on this machine ({report['machine']}). It "
            f"may be built for another architecture. Reinstall it: `ssh {host} {python} -m pip "
            f"install --force-reinstall {names}`."
        )


def _digest(path: Path) -> str:
    if not path.is_file():
        raise DeviceError(f"{path}: no such model. Export it, then measure again.")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _packed_room() -> tuple[bytes, str]:
    """Pack this folder as a package and return the tar file and the hash of its contents."""
    modules = Path(__file__).parent.glob("*.py")
    files = {f"lowrank/devices/{module.name}": module.read_bytes() for module in modules}
    files["lowrank/__init__.py"] = b""
    packed = io.BytesIO()
    digest = hashlib.sha256()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name in sorted(files):
            member = tarfile.TarInfo(name)
            member.size = len(files[name])
            tar.addfile(member, io.BytesIO(files[name]))
            digest.update(name.encode() + b"\0" + files[name])
    return packed.getvalue(), digest.hexdigest()[:16]


ENTRIES = (
    DeviceKind(
        "ssh",
        "another machine, reached over SSH; it needs Python 3.9 or later, NumPy and the runtime.",
        create_device=SshDevice,
        settings=SshSettings,
    ),
)
