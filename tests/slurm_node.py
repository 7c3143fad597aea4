"""Run a real Slurm cluster of one node on this machine for a test."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

_SBIN = "/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/bin"
_PROGRAMS = {
    name: shutil.which(name, path=_SBIN) for name in ("munged", "slurmctld", "slurmd", "sbatch")
}
_START_SECONDS = 30

# Where Slurm's commands look without SLURM_CONF, which jobs of Snakemake do not inherit.
_SYSTEM_CONFIGURATION = Path("/etc/slurm/slurm.conf")


def missing() -> str | None:
    """Return the reason for skipping tests that need Slurm, or None."""
    if absent := [name for name, path in _PROGRAMS.items() if path is None]:
        return f"no {', '.join(absent)} installed (slurm-wlm, munge)"
    if os.geteuid() != 0:
        return "Slurm's daemons run jobs as another user only if root starts them"
    if _SYSTEM_CONFIGURATION.exists() or _SYSTEM_CONFIGURATION.is_symlink():
        return f"this machine has a configuration of Slurm already ({_SYSTEM_CONFIGURATION})"
    return None


class NotReadyError(Exception):
    """Raised when Slurm's daemons do not start on this machine."""


class Node:
    """A Slurm cluster of one node, with files in one folder and no accounting database."""

    def __init__(self, folder: Path, cores: int) -> None:
        self.folder, self.cores = folder, cores
        self.configuration = folder / "slurm.conf"
        self._processes: list[subprocess.Popen[bytes]] = []

    def run(self, *command: str) -> str:
        """Run a command of Slurm and return what it printed."""
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    def start(self) -> None:
        """Start the daemons and wait until the node is idle. Raises NotReadyError if it is not."""
        self.folder.chmod(0o755)
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key, connection = self.folder / "munge.key", self.folder / "munge.socket"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        self._write_configuration(connection)
        _SYSTEM_CONFIGURATION.symlink_to(self.configuration)
        self._start(
            "munged",
            "--foreground",
            "--force",
            *(f"--key-file={key}", f"--socket={connection}"),
            *(f"--pid-file={self.folder}/munge.pid", f"--log-file={self.folder}/munge.log"),
            f"--seed-file={self.folder}/munge.seed",
        )
        self._wait_for(connection.exists)
        self._start("slurmctld", "-D", "-f", str(self.configuration))
        self._start("slurmd", "-D", "-f", str(self.configuration))
        self._wait_for(lambda: self.run("sinfo", "-h", "-o", "%T").strip() == "idle")

    def stop(self) -> None:
        """End the daemons, the jobs first."""
        subprocess.run(["scancel", "--user=root"], check=False, timeout=60)
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self._processes):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
        if _SYSTEM_CONFIGURATION.is_symlink():
            _SYSTEM_CONFIGURATION.unlink()

    def _start(self, name: str, *arguments: str) -> None:
        log = (self.folder / f"{name}.out").open("wb")
        path = _PROGRAMS[name]
        assert path
        process = subprocess.Popen([path, *arguments], stdout=log, stderr=log)
        self._processes.append(process)

    def _wait_for(self, condition) -> None:
        end = time.monotonic() + _START_SECONDS
        while time.monotonic() < end:
            for process in self._processes:
                if process.poll() is not None:
                    logs = [path.read_text() for path in self.folder.glob("*.out")]
                    raise NotReadyError("a daemon of Slurm ended: " + "\n".join(logs))
            try:
                if condition():
                    return
            except subprocess.CalledProcessError:
                pass  # The controller does not answer yet.
            time.sleep(0.1)
        raise NotReadyError(f"Slurm was not ready after {_START_SECONDS} s; logs: {self.folder}")

    def _write_configuration(self, connection: Path) -> None:
        host = socket.gethostname().partition(".")[0]
        controller, node = _free_ports(2)
        (self.folder / "cgroup.conf").write_text("CgroupAutomount=no\nConstrainCores=no\n")
        self.configuration.write_text(f"""\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={connection}
StateSaveLocation={self.folder}/state
SlurmdSpoolDir={self.folder}/spool
SlurmctldPidFile={self.folder}/slurmctld.pid
SlurmdPidFile={self.folder}/slurmd.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=2,batch_sched_delay=0,requeue_setup_env_fail
ReturnToService=2
MpiDefault=none
MinJobAge=300
KillWait=10
NodeName={host} NodeAddr=127.0.0.1 CPUs={self.cores} RealMemory=16000 Feature=here State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP
""")


def _free_ports(count: int) -> list[int]:
    """Return ports that no process uses. They differ, because all are open at the same time."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


@contextmanager
def running_node(folder: Path, cores: int = 2):
    """Run a cluster of one node inside the block."""
    node = Node(folder, cores)
    try:
        node.start()
        yield node
    finally:
        node.stop()
