"""Run a real OpenSSH server on the loopback address for a test."""

import shutil
import socket
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from getpass import getuser
from pathlib import Path

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/bin")
# Reason for skipping tests that need a server, or None.
MISSING = None if SSHD and shutil.which("ssh") else "no OpenSSH server (openssh-server) installed"


class Server:
    """An SSH server. Its host is called `board` in the client's configuration."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
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
        """Command of the SSH client with the configuration of this server."""
        return f"ssh -F {self.client}"

    def make_key(self, name: str) -> None:
        """Create a key. An existing key is replaced."""
        for path in (self.folder / name, self.folder / f"{name}.pub"):
            path.unlink(missing_ok=True)
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.folder / name], check=True
        )

    def trust_host_key(self) -> None:
        """Add the server's host key to the known hosts of the client."""
        kind, key, *_ = (self.folder / "host_key.pub").read_text().split()
        (self.folder / "known").write_text(f"[127.0.0.1]:{self.cable.port} {kind} {key}\n")

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        # As root, the server needs this folder for privilege separation. Other users do not.
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
        """Stop accepting connections. Open connections are kept."""
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._process = None


class Cable:
    """A proxy between a client and the server, which can cut connections.

    Attributes
    ----------
    cut_after
        For each connection in order, the number of bytes from the client after which it is cut, or
        None for no limit. Later connections have no limit.
    connections
        The number of connections so far.
    """

    def __init__(self, port: int) -> None:
        self._server_port = port
        self.cut_after: list[int | None] = []
        self.connections = 0
        self._open: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Cut all open connections."""
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def close(self) -> None:
        """Accept no more connections, and cut all open ones."""
        self._listening.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                server = socket.create_connection(("127.0.0.1", self._server_port))
                limits = dict(enumerate(self.cut_after))
                limit = limits.get(self.connections)
                self.connections += 1
                self._open += [client, server]
                for source, sink, maximum in ((client, server, limit), (server, client, None)):
                    arguments = (source, sink, maximum)
                    threading.Thread(target=self._forward, args=arguments, daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, sink: socket.socket, maximum: int | None) -> None:
        forwarded = 0
        with suppress(OSError), source, sink:
            while chunk := source.recv(65536):
                sink.sendall(chunk)
                forwarded += len(chunk)
                if maximum is not None and forwarded > maximum:
                    break
            for connection in (source, sink):
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def running(folder: Path):
    """Run a server inside the block."""
    server = Server(folder)
    server.start()
    try:
        yield server
    finally:
        server.cable.close()
        server.stop()
