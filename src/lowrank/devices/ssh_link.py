"""A connection to another machine through the system's OpenSSH client.

Keys, jump hosts and multiplexing come from the user's SSH configuration.
"""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

from lowrank.devices.device import DeviceError

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

# Options of the client that a `command` may contain. Other options, especially `-o`, can name
# programs to run. They belong in the user's own SSH configuration.
_WITH_VALUE, _ALONE = ("-F", "-i", "-l", "-p", "-J", "-c", "-m"), ("-4", "-6", "-C", "-q", "-v")


class LostError(Exception):
    """Raised when an established connection is lost."""


class SshLink:
    """An SSH connection that runs commands on the other machine."""

    def __init__(self, host: str, python: str, folder: str, command: str) -> None:
        self.host, self.python, self.folder = host, python, folder
        self._command = _client(command)

    def json(self, command: list[str], data: Any = b"") -> dict[str, Any]:
        """Run a command and return the JSON object that it prints as its last line."""
        printed = self.run(command, data)
        try:
            answer: dict[str, Any] = json.loads(printed.strip().splitlines()[-1])
            return answer
        except (IndexError, ValueError):
            raise DeviceError(
                f"{self.host}: '{self.python}' printed {printed[-200:]!r}, but JSON was expected. "
                "Make sure that the login shell on that machine prints nothing."
            ) from None

    def run(self, command: list[str], data: Any = b"") -> str:
        """Run a command and return what it prints.

        `data` is the standard input of the command: bytes or an open file. Raises LostError if the
        connection is lost, and DeviceError for any other failure.
        """
        line = " ".join(map(quoted, command))
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
            raise LostError(errors.splitlines()[-1] if errors else "without a message")
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
        output: str = done.stdout.decode(errors="replace")
        return output


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


def quoted(word: str) -> str:
    """Quote a word for the shell of the other machine. The shell still expands a leading `~/`."""
    return f"~/{shlex.quote(word[2:])}" if word.startswith("~/") else shlex.quote(word)
