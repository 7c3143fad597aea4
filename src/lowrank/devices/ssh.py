"""Another machine, reached by the system's OpenSSH client.

Keys, jump hosts and multiplexing are as the user's SSH configuration has them. What is sent is this
folder and the models, each once and checked by its hash; the other machine needs Python, NumPy and
ONNX Runtime.
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
from lowrank.devices.there import CLEAN, FOLDER, PREPARE

if TYPE_CHECKING:
    from collections.abc import Callable

# Never a question, for nobody is there to answer; a connection that is dead is found so.
_OPTIONS = (
    "-o", "BatchMode=yes",
    "-o", "ConnectTimeout=15",
    "-o", "ServerAliveInterval=10",
    "-o", "ServerAliveCountMax=3",
)  # fmt: skip

# What the OpenSSH client says before it gives up, and what that means to a user.
_REFUSALS = (
    (
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one that is known. Somebody may be between, or the machine was "
        "set up anew: find out which, and only then `ssh-keygen -R {host}`.",
    ),
    (
        "Host key verification failed",
        "its host key is not known here. Connect once by hand, `ssh {host}`, and compare it.",
    ),
    (
        "Could not resolve hostname",
        "there is no host of that name. Correct `host` in params.yaml, or add it to ~/.ssh/config.",
    ),
    (
        "Permission denied",
        "it accepts none of the keys. Put one there with `ssh-copy-id {host}`, or name it in "
        "~/.ssh/config; passwords cannot be asked for.",
    ),
    ("Connection refused", "no SSH server answers there. Start one, or correct the port."),
    ("No route to host", "the machine cannot be reached. Is it on, and in this network?"),
    ("Connection timed out", "the machine does not answer. Is it on, and in this network?"),
    ("Operation timed out", "the machine does not answer. Is it on, and in this network?"),
    ("Bad configuration option", "the SSH configuration has an error."),
)

# The client's exit status for a failure of its own, such as a connection that is lost.
_LOST = 255

# What a `host` may be: a name, an address, `user@host`, `ssh://user@host:port`. Nothing that the
# client could take for an option, or a configuration hand to a shell.
_HOST = re.compile(r"[A-Za-z0-9_\[][A-Za-z0-9_.:@%/\[\]-]*")

# Options of the client that a `command` may have. Others, `-o` above all, can name programs to run;
# they belong in the user's own SSH configuration.
_WITH_VALUE, _ALONE = ("-F", "-i", "-l", "-p", "-J", "-c", "-m"), ("-4", "-6", "-C", "-q", "-v")

# Python over there writes no compiled files: a disk that was full would leave cut ones.
_PYTHON_OPTIONS = ("-B", "-c")


class SshDevice:
    """Runs models on another machine. Its settings hold where a measurement does not set its own.

    Parameters
    ----------
    name : str
        What the user calls it.
    settings : dict
        Fields of `MeasureSettings` by name, and `host`, as in the user's SSH configuration;
        `python` over there; `folder` over there, for what is sent; `command`, the SSH client.
    """

    def __init__(self, name: str, settings: dict[str, Any]) -> None:
        self.name = name
        own, self._settings = _apart(settings)
        if not own.get("host"):
            raise DeviceError("`host` is missing: the name of the machine in ~/.ssh/config.")
        self._link = _Link(**own)
        self._there: dict[str, str] = {}

    def measure(self, original: Path, compressed: Path, settings: dict[str, Any]) -> dict[str, Any]:
        """Measure two ONNX models turn about over there; see `Device.measure`."""
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
        found = self._ask("node_times", [model], settings)
        return {name: NodeTime(*each) for name, each in found.items()}

    def clean(self) -> dict[str, Any]:
        """Remove what was sent, and nothing else.

        Returns `folder`, how many files were `removed`, and the names of those that `stay` because
        they are not ours. Raises DeviceError where a measurement is running.
        """
        link = self._link
        command = [link.python, *_PYTHON_OPTIONS, FOLDER + CLEAN, link.folder]
        found = self._twice(lambda: link.json(command))
        _require_usable(found, link)
        return found

    def _ask(self, method: str, models: list[Path], settings: dict[str, Any]) -> Any:
        """Have a method of a device called over there, once, whatever the connection does."""
        _, asked = _apart({**self._settings, **settings})
        hashes = [_digest(Path(model)) for model in models]
        digests = dict(zip(hashes, map(Path, models)))  # noqa: B905  (`strict` is Python 3.10's)
        for digest, model in digests.items():
            self._twice(lambda digest=digest, model=model: self._send(digest, model))
        request = {
            "method": method,
            "models": hashes,
            "device": self.name,
            "settings": asked,
            "owner": f"{getpass.getuser()} at {socket.gethostname()}",
        }
        job = uuid.uuid4().hex
        data = json.dumps(request).encode()
        try:
            return self._twice(lambda: self._call("run", job, data=data))["answer"]
        except DeviceError as error:
            # With the models' names here.
            told = str(error)
            for digest, model in digests.items():
                told = re.sub(rf"\S*{digest}\.onnx", str(model), told)
            raise DeviceError(told) from error

    def _send(self, digest: str, model: Path) -> None:
        """Bring a model there, or the rest of it where a part has arrived.

        What is there is used only where its hash is right. A part that turns out to be another
        file's is sent again from the start.
        """
        for _ in range(2):
            known = self._call("have", digest)["models"][digest]
            if known["whole"]:
                return
            with model.open("rb") as file:
                file.seek(known["bytes"])
                size = model.stat().st_size
                arrived = self._call("receive", digest, str(known["bytes"]), str(size), data=file)
            if arrived["whole"]:
                return
        raise DeviceError(
            f"{self._link.host}: {model} arrived altered twice. Check the disk over there."
        )

    def _call(self, verb: str, *arguments: str, data: Any = b"") -> dict[str, Any]:
        """What our program over there answers. Raises DeviceError for a problem that it tells."""
        there = self._prepared()
        code = "import os, sys; os.chdir(sys.argv.pop(1)); sys.path.insert(0, '')"
        code += "; os.environ['PYTHONDONTWRITEBYTECODE'] = '1'"
        code += "; import runpy; runpy.run_module('lowrank.devices.remote', run_name='__main__')"
        command = [self._link.python, *_PYTHON_OPTIONS, code]
        command += [there["room"], there["folder"], verb, *arguments]
        answer = self._link.json(command, data)
        if "problem" in answer:
            raise DeviceError(f"{self._link.host}: {answer['problem']}")
        return answer

    def _prepared(self) -> dict[str, str]:
        """Send this folder, once, and find out what the machine has."""
        if not self._there:
            room, digest = _packed_room()
            link = self._link
            command = [link.python, *_PYTHON_OPTIONS, FOLDER + PREPARE, link.folder, digest]
            found = self._twice(lambda: link.json(command, room))
            _require_usable(found, link)
            self._there = found
        return self._there

    def _twice(self, attempt: Callable[[], Any]) -> Any:
        """A lost connection is made again once; what has arrived is not sent again."""
        try:
            return attempt()
        except _LostError:
            try:
                return attempt()
            except _LostError as error:
                raise DeviceError(
                    f"{self._link.host}: the connection was lost twice ({error}). What was "
                    "measured on other devices stays. Mend the network, then run the same command "
                    "again."
                ) from error


class _LostError(Exception):
    """A connection that was there is lost."""


class _Link:
    """Runs commands over there."""

    def __init__(
        self,
        host: str,
        python: str = "python3",
        folder: str = "~/.cache/lowrank",
        command: str = "ssh",
    ) -> None:
        if not _HOST.fullmatch(host):
            raise DeviceError(
                f"`host` is {host!r}, expected a name of ~/.ssh/config, an address, or "
                "`user@host`. Options belong in ~/.ssh/config."
            )
        self.host, self.python, self.folder = host, python, folder
        self._command = _client(command)

    def json(self, command: list[str], data: Any = b"") -> dict[str, Any]:
        """The JSON object that a command prints as its last line."""
        printed = self.run(command, data)
        try:
            return json.loads(printed.strip().splitlines()[-1])
        except (IndexError, ValueError):
            raise DeviceError(
                f"{self.host}: '{self.python}' answered {printed[-200:]!r} where JSON was "
                "expected. Does the login shell over there print something of its own?"
            ) from None

    def run(self, command: list[str], data: Any = b"") -> str:
        """What a command prints; `data` are bytes, or a file that is open, for its input.

        Raises _LostError where the connection is lost, and DeviceError for all else that fails.
        """
        line = " ".join(map(_quoted, command))
        given = {"input": data} if isinstance(data, bytes) else {"stdin": data}
        try:
            done = subprocess.run(
                [*self._command, *_OPTIONS, "--", self.host, line],
                capture_output=True,
                check=False,
                **given,
            )
        except FileNotFoundError:
            raise DeviceError(
                f"there is no '{self._command[0]}' here. Install the OpenSSH client "
                "(`apt install openssh-client`)."
            ) from None
        said = done.stderr.decode(errors="replace").strip()
        if done.returncode == _LOST:
            for sign, meaning in _REFUSALS:
                if sign in said:
                    raise DeviceError(
                        f"{self.host}: {meaning.format(host=self.host)} ({said.splitlines()[-1]})"
                    )
            raise _LostError(said.splitlines()[-1] if said else "without a word")
        if done.returncode == 127:
            raise DeviceError(
                f"{self.host}: there is no '{command[0]}' over there ({said}). Install Python 3.9 "
                "or later (`sudo apt install python3 python3-pip`; in Termux `pkg install "
                "python`), or name it as `python`."
            )
        if done.returncode:
            last = said.splitlines()[-1] if said else "it printed nothing"
            full = " No space is left over there." if "No space left" in said else ""
            raise DeviceError(
                f"{self.host}: '{command[0]}' ended with status {done.returncode} ({last}).{full}"
            )
        return done.stdout.decode(errors="replace")


def _require_usable(found: dict[str, Any], link: _Link) -> None:
    """Raise DeviceError where the machine lacks something, with the command that brings it."""
    host, python = link.host, link.python
    if "old" in found:
        raise DeviceError(
            f"{host}: '{python}' is Python {found['old']}; 3.9 or later is needed. Install one, "
            "and name it as `python`."
        )
    if "refused" in found:
        raise DeviceError(f"{host}: {found['refused']}")
    if "problem" in found:
        raise DeviceError(
            f"{host}: nothing can be kept in {link.folder} ({found['problem']}). Free some space, "
            "or name another `folder`."
        )
    if "missing" in found:
        raise DeviceError(
            f"{host}: {found['python']} has no {found['missing']}. Install it: "
            f"`ssh {host} {python} -m pip install numpy onnxruntime`."
        )
    if "broken" in found:
        raise DeviceError(
            f"{host}: {found['broken']} does not load on this machine ({found['machine']}). It may "
            f"be for another architecture: `ssh {host} {python} -m pip install --force-reinstall "
            "numpy onnxruntime`."
        )


def _client(command: str) -> list[str]:
    """The words of a `command`. Raises DeviceError where it is not the OpenSSH client."""
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise DeviceError(f"`command` is {command!r}: {error}.") from None
    program, rest = (words[0] if words else ""), iter(words[1:])
    if Path(program).name not in ("ssh", "ssh.exe"):
        raise DeviceError(
            f"`command` is {command!r}, expected the OpenSSH client: `ssh`, or a path that ends "
            "in `/ssh`, with options."
        )
    for word in rest:
        value = next(rest, "-") if word in _WITH_VALUE else ""
        if word not in (*_WITH_VALUE, *_ALONE) or value.startswith("-"):
            raise DeviceError(
                f"`command` is {command!r}: of the client's options it may have "
                f"{', '.join((*_WITH_VALUE, *_ALONE))}; '{word}' belongs in ~/.ssh/config, or in a "
                "file that `-F` names."
            )
    return words


def _apart(settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Where the machine is, and how it measures."""
    ours = ("host", "python", "folder", "command")
    own = {name: settings[name] for name in ours if name in settings}
    return own, {name: each for name, each in settings.items() if name not in (*ours, "kind")}


def _quoted(word: str) -> str:
    """For the shell over there, which still puts its home folder for a leading `~/`."""
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word)


def _digest(path: Path) -> str:
    if not path.is_file():
        raise DeviceError(f"{path}: no such model. Export it, then measure again.")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _packed_room() -> tuple[bytes, str]:
    """The folder of this file as a package of its own, a tar file, and its hash."""
    modules = Path(__file__).parent.glob("*.py")
    files = {f"lowrank/devices/{each.name}": each.read_bytes() for each in modules}
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
