"""Measure on another machine through the system's OpenSSH client.

Keys, jump hosts and multiplexing come from the user's SSH configuration. This folder and the models
are sent once each and checked by their hashes. The other machine needs Python, NumPy and ONNX
Runtime.
"""

from __future__ import annotations

import getpass
import hashlib
import io
import json
import re
import shlex
import socket
import subprocess
import tarfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowrank.devices.device import DeviceError, NodeTime
from lowrank.devices.remote_scripts import CLEAN, FOLDER, PREPARE

if TYPE_CHECKING:
    from collections.abc import Callable

# BatchMode never asks for a password. The other options detect a dead connection.
_OPTIONS = (
    "-o", "BatchMode=yes",
    "-o", "ConnectTimeout=15",
    "-o", "ServerAliveInterval=10",
    "-o", "ServerAliveCountMax=3",
)  # fmt: skip

# Messages of the OpenSSH client, and their explanation for the user.
_EXPLANATIONS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key differs from the known one. Either the machine was reinstalled, or somebody "
        "intercepts the connection. Find out which. If the new key is right, run "
        "`ssh-keygen -R {host}`.",
    ),
    (
        "Host key verification failed",
        "its host key is not known on this machine. Run `ssh {host}` once by hand and compare the "
        "key.",
    ),
    (
        "Could not resolve hostname",
        "no host has this name. Correct `host` in params.yaml, or add it to ~/.ssh/config.",
    ),
    (
        "Permission denied",
        "it accepts none of your keys. Install one with `ssh-copy-id {host}`, or name the right "
        "key in ~/.ssh/config. Password login is not supported.",
    ),
    ("Connection refused", "no SSH server answers on that port. Start one, or correct the port."),
    ("No route to host", "the machine cannot be reached. Check its power and its network."),
    ("Connection timed out", "the machine does not answer. Check its power and its network."),
    ("Operation timed out", "the machine does not answer. Check its power and its network."),
    ("Bad configuration option", "the SSH configuration has an error. Correct ~/.ssh/config."),
)

# The client's exit status if it fails itself, for example because the connection is lost.
_LOST = 255

# A `host` is a name, an address, `user@host` or `ssh://user@host:port`. The pattern excludes text
# that the client could read as an option, or that a configuration could pass to a shell.
_HOST = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9_.:@%/\[\]-]*")

# Options of the client that a `command` may contain. Other options, especially `-o`, can name
# programs to run. They belong in the user's own SSH configuration.
_WITH_VALUE, _ALONE = ("-F", "-i", "-l", "-p", "-J", "-c", "-m"), ("-4", "-6", "-C", "-q", "-v")

# -B: Python writes no compiled files, because a full disk would leave truncated ones.
_PYTHON_OPTIONS = ("-B", "-c")


class SshDevice:
    """A device that runs models on another machine over SSH.

    The settings of the device apply unless a measurement overrides them.

    Parameters
    ----------
    name : str
        The user's name for the device.
    settings : dict
        Fields of `MeasureSettings` by name, and: `host`, a name of the user's SSH configuration;
        `python`, the interpreter on the other machine; `folder`, the folder on the other machine
        for the files that are sent; `command`, the SSH client.

    Raises
    ------
    DeviceError
        If `host` is missing, or `host` or `command` is invalid.
    """

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        link_settings, self._settings = _split(settings)
        if not link_settings.get("host"):
            raise DeviceError(
                f"device '{name}': `host` is missing. Set it to the name of the machine in "
                "~/.ssh/config."
            )
        self._link = _Link(**link_settings)
        self._remote: dict[str, str] = {}

    def measure(self, original: Path, compressed: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Measure two ONNX models in alternating turns on the other machine: `Device.measure`."""
        return self._ask("measure", [original, compressed], settings)

    def lacks_int8(self, model: Path, settings: dict[str, Any]) -> str | None:
        """See `Device.lacks_int8`."""
        return self._ask("lacks_int8", [model], settings)

    def environment(self, settings: dict[str, Any]) -> dict[str, Any]:
        """See `Device.environment`."""
        return self._ask("environment", [], settings)

    def describe(self, settings: dict[str, Any]) -> dict[str, Any]:
        """See `Device.describe`."""
        return self._ask("describe", [], settings)

    def outputs(self, model: Path, settings: dict[str, Any]) -> list[list[float]]:
        """See `Device.outputs`."""
        return self._ask("outputs", [model], settings)

    def answers(self, model: Path, images: Path, settings: dict[str, Any]) -> list[list[float]]:
        """See `Device.answers`."""
        return self._ask("answers", [model, images], settings)

    def node_times(self, model: Path, settings: dict[str, Any]) -> dict[str, NodeTime]:
        """See `Device.node_times`."""
        fields_by_node = self._ask("node_times", [model], settings)
        return {name: NodeTime(*fields) for name, fields in fields_by_node.items()}

    def clean(self) -> dict[str, Any]:
        """Remove the files that were sent to the other machine, and no others.

        Returns a dict with `folder`, the number of `removed` files, and the names of the files that
        `stay` because lowrank did not create them. Raises DeviceError if a measurement is running.
        """
        link = self._link
        command = [link.python, *_PYTHON_OPTIONS, FOLDER + CLEAN, link.folder]
        report = self._retry_once(lambda: link.json(command))
        _require_usable(report, link)
        return report

    def _ask(self, method: str, models: list[Path], settings: dict[str, Any]) -> Any:
        """Call a method of the device on the other machine, once even if the connection is lost."""
        _, measure_settings = _split({**self._settings, **settings})
        hashes = [_digest(Path(model)) for model in models]
        digests = dict(zip(hashes, map(Path, models)))  # noqa: B905  (`strict` is Python 3.10's)
        for digest, model in digests.items():
            self._retry_once(lambda digest=digest, model=model: self._send(digest, model))
        request = {
            "method": method,
            "models": hashes,
            "device": self.name,
            "settings": measure_settings,
            "owner": f"{getpass.getuser()} at {socket.gethostname()}",
        }
        job = uuid.uuid4().hex
        data = json.dumps(request).encode()
        try:
            return self._retry_once(lambda: self._call("run", job, data=data))["answer"]
        except DeviceError as error:
            # Replace the paths on the other machine by the paths on this one.
            message = str(error)
            for digest, model in digests.items():
                message = re.sub(rf"\S*{digest}\.onnx", str(model), message)
            raise DeviceError(message) from error

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
            command = [link.python, *_PYTHON_OPTIONS, FOLDER + PREPARE, link.folder, digest]
            report = self._retry_once(lambda: link.json(command, room))
            _require_usable(report, link)
            self._remote = report
        return self._remote

    def _retry_once(self, attempt: Callable[[], Any]) -> Any:
        """Try again once if the connection is lost. Data that has arrived is not sent again."""
        try:
            return attempt()
        except _LostError:
            try:
                return attempt()
            except _LostError as error:
                raise DeviceError(
                    f"{self._link.host}: the connection was lost twice ({error}). Measurements on "
                    "other devices are kept. Check the network, then run the same command again."
                ) from error


class _LostError(Exception):
    """Raised when an established connection is lost."""


class _Link:
    """An SSH connection that runs commands on the other machine."""

    def __init__(
        self,
        host: str,
        python: str = "python3",
        folder: str = "~/.cache/lowrank",
        command: str = "ssh",
    ) -> None:
        if not _HOST.fullmatch(host):
            raise DeviceError(
                f"`host` is {host!r}; expected a name of ~/.ssh/config, an address, or "
                "`user@host`. Options belong in ~/.ssh/config."
            )
        self.host, self.python, self.folder = host, python, folder
        self._command = _client(command)

    def json(self, command: list[str], data: Any = b"") -> dict[str, Any]:
        """Run a command and return the JSON object that it prints as its last line."""
        printed = self.run(command, data)
        try:
            return json.loads(printed.strip().splitlines()[-1])
        except (IndexError, ValueError):
            raise DeviceError(
                f"{self.host}: '{self.python}' printed {printed[-200:]!r}, but JSON was expected. "
                "Make sure that the login shell on that machine prints nothing."
            ) from None

    def run(self, command: list[str], data: Any = b"") -> str:
        """Run a command and return what it prints.

        `data` is the standard input of the command: bytes or an open file. Raises _LostError if the
        connection is lost, and DeviceError for any other failure.
        """
        line = " ".join(map(_quoted, command))
        standard_input = {"input": data} if isinstance(data, bytes) else {"stdin": data}
        try:
            done = subprocess.run(
                [*self._command, *_OPTIONS, "--", self.host, line],
                capture_output=True,
                check=False,
                **standard_input,
            )
        except FileNotFoundError:
            raise DeviceError(
                f"'{self._command[0]}' was not found on this machine. Install the OpenSSH client "
                "(`apt install openssh-client`)."
            ) from None
        errors = done.stderr.decode(errors="replace").strip()
        if done.returncode == _LOST:
            for sign, explanation in _EXPLANATIONS:
                if sign in errors:
                    last = errors.splitlines()[-1]
                    raise DeviceError(f"{self.host}: {explanation.format(host=self.host)} ({last})")
            raise _LostError(errors.splitlines()[-1] if errors else "without a message")
        if done.returncode == 127:
            raise DeviceError(
                f"{self.host}: '{command[0]}' was not found on that machine ({errors}). Install "
                "Python 3.9 or later (`sudo apt install python3 python3-pip`; in Termux `pkg "
                "install python`), or set `python` to its path."
            )
        if done.returncode:
            last = errors.splitlines()[-1] if errors else "it printed nothing"
            full = " No space is left on that machine." if "No space left" in errors else ""
            raise DeviceError(
                f"{self.host}: '{command[0]}' ended with status {done.returncode} ({last}).{full}"
            )
        return done.stdout.decode(errors="replace")


def _require_usable(report: dict[str, Any], link: _Link) -> None:
    """Raise DeviceError if the machine lacks something. The message says how to install it."""
    host, python = link.host, link.python
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
            f"`ssh {host} {python} -m pip install numpy onnxruntime`."
        )
    if "broken" in report:
        raise DeviceError(
            f"{host}: {report['broken']} does not load on this machine ({report['machine']}). It "
            f"may be built for another architecture. Reinstall it: `ssh {host} {python} -m pip "
            "install --force-reinstall numpy onnxruntime`."
        )


def _client(command: str) -> list[str]:
    """Split `command` into words. Raises DeviceError if it is not the OpenSSH client."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise DeviceError(
            f"`command` is {command!r}, which is not a valid shell command ({error}). Correct its "
            "quotes."
        ) from None
    program, rest = (words[0] if words else ""), iter(words[1:])
    if Path(program).name not in ("ssh", "ssh.exe"):
        raise DeviceError(
            f"`command` is {command!r}; expected the OpenSSH client: `ssh`, or a path that ends "
            "in `/ssh`, with options."
        )
    for word in rest:
        value = next(rest, "-") if word in _WITH_VALUE else ""
        if word not in (*_WITH_VALUE, *_ALONE) or value.startswith("-"):
            raise DeviceError(
                f"`command` is {command!r}, but '{word}' is not allowed there. Allowed options: "
                f"{', '.join((*_WITH_VALUE, *_ALONE))}. Other options belong in ~/.ssh/config, or "
                "in a file given with `-F`."
            )
    return words


def _split(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the settings into those of the connection and those of a measurement."""
    names = ("host", "python", "folder", "command")
    link_settings = {name: settings[name] for name in names if name in settings}
    return link_settings, {
        name: value for name, value in settings.items() if name not in (*names, "kind")
    }


def _quoted(word: str) -> str:
    """Quote a word for the shell of the other machine. The shell still expands a leading `~/`."""
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word)


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
