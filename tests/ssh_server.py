"""A real OpenSSH server on the loopback address, for one test."""

import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from getpass import getuser
from pathlib import Path

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/bin")
# Why tests that need one are left out; None: they are not.
MISSING = None if SSHD and shutil.which("ssh") else "no OpenSSH server (openssh-server) here"


class Server:
    """Its host is called `board` in the client's configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.cable = Cable(self.port)
        for name in ("host_key", "user_key"):
            self.make_key(name)
        (folder / "authorized").write_text((folder / "user_key.pub").read_text())
        self.trust_host_key()
        self.client = folder / "ssh_config"
        self.client.write_text(
            f"Host board\n  HostName 127.0.0.1\n  Port {self.cable.port}\n  User {getuser()}\n"
            f"  IdentityFile {folder}/user_key\n  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {folder}/known\n  GlobalKnownHostsFile /dev/null\n"
            "  StrictHostKeyChecking yes\n"
        )
        (folder / "sshd_config").write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {folder}/host_key\n"
            f"AuthorizedKeysFile {folder}/authorized\nPidFile {folder}/pid\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\n"
            "KbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n"
        )
        self._process = None

    @property
    def command(self) -> str:
        """The client, with that configuration."""
        return f"ssh -F {self.client}"

    def make_key(self, name: str) -> None:
        """Make a key, or another one in the place of one that is there."""
        for path in (self.folder / name, self.folder / f"{name}.pub"):
            path.unlink(missing_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], check=True
        )

    def trust_host_key(self) -> None:
        """Make the server's host key the one that is known."""
        kind, key, *_ = (self.folder / "host_key.pub").read_text().split()
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.cable.port} {kind} {key}\n")

    def start(self) -> None:
        """Answer connections."""
        # As root it gives up its privileges into this folder; as another user it needs none.
        with suppress(OSError):
            Path("/run/sshd").mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", self.folder / "sshd_config"],
            stderr=(self.folder / "log").open("ab"),
        )
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        """Answer none any more; those that are there stay."""
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._process = None


class Cable:
    """Between a client and the server: what goes through it may be cut.

    Attributes
    ----------
    cut_after
        Bytes from the client after which a connection is cut, for each connection in turn; None:
        never. Connections beyond the list are left alone.
    connections
        How many there were.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self.cut_after: list[int | None] = []
        self.connections = 0
        self._open: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Cut every connection that is there."""
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        """Let none through any more."""
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
                limits = dict(enumerate(self.cut_after))
                limit = limits.get(self.connections)
                self.connections += 1
                self._open += [client, server]
                for source, target, most in ((client, server, limit), (server, client, None)):
                    arguments = (source, target, most)
                    threading.Thread(target=self._pass_on, args=arguments, daemon=True).start()

    @staticmethod
    def _pass_on(source: socket.socket, target: socket.socket, most: int | None) -> None:
        passed = 0
        with suppress(OSError), source, target:
            while chunk := source.recv(65536):
                target.sendall(chunk)
                passed += len(chunk)
                if most is not None and passed > most:
                    break
            for each in (source, target):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)


@contextmanager
def running(folder: Path):
    """A server that is there as long as the block lasts."""
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.cable.close()
        server.stop()
