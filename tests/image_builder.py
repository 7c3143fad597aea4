"""Build the images of Containerfile with Buildah, on a clean Debian 12 from debootstrap."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from projects import ROOT

RELEASE = "bookworm"
# Settings of pip that say where packages come from.
_PIP_SETTINGS = ("index-url", "proxy", "timeout", "trusted-host")
# The packages as wheels, in the layer, and in its copy while it is committed.
_BYTES_NEEDED = 15 * 10**9


def missing() -> str | None:
    """Return the reason for skipping tests that build images, or None."""
    if os.geteuid() != 0:
        return "debootstrap, and Buildah without user namespaces, need root"
    if absent := [name for name in ("buildah", "debootstrap", "unshare") if not shutil.which(name)]:
        return f"no {', '.join(absent)} installed"
    if shutil.disk_usage(tempfile.gettempdir()).free < _BYTES_NEEDED:
        return f"less than {_BYTES_NEEDED / 1e9:.0f} GB free in {tempfile.gettempdir()}"
    return None


def base_of_containerfile() -> str:
    """Return the name of the base image in Containerfile."""
    lines = (ROOT / "Containerfile").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("ARG BASE=")]
    return line.removeprefix("ARG BASE=")


class Builder:
    """Buildah with all its files in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = os.environ | {"TMPDIR": str(folder), "BUILDAH_ISOLATION": "chroot"}
        places = ("--root", str(folder / "store"), "--runroot", str(folder / "run"))
        self.command = ("buildah", *places, "--storage-driver", self._driver(places))

    def __call__(self, *arguments: str, check: bool = True) -> str:
        """Run a command of Buildah and return what it printed, errors included."""
        return self._run(*self.command, *arguments, check=check)

    def make_base(self, name: str) -> None:
        """Make a base image from Debian's packages, which get packages as this machine does."""
        container = self("from", "scratch").split()[-1]
        root = self("mount", container).strip()
        self._run("debootstrap", "--variant=minbase", RELEASE, root, *filter(None, [_mirror()]))
        _give_settings_of_pip(Path(root))
        self("umount", container)
        self("commit", "--quiet", "--rm", container, name)

    def build(self, target: str, *options: str) -> str:
        """Build a target of Containerfile and return the name of the image."""
        image = f"lowrank:{target}"
        options = ("--target", target, "--tag", image, "--pull-never", "--layers", *options)
        self("build", *options, "--file", str(ROOT / "Containerfile"), str(ROOT))
        return image

    def close(self) -> None:
        """Remove all containers, images and mounts. The folder stays."""
        self("rm", "--all", check=False)
        self("rmi", "--all", "--force", check=False)

    def _driver(self, places: tuple[str, ...]) -> str:
        """Return the faster storage driver, or the one that works everywhere."""
        command = ("buildah", *places, "--storage-driver", "overlay", "info")
        done = subprocess.run(command, env=self.environment, capture_output=True, check=False)
        return "vfs" if done.returncode else "overlay"

    def _run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout
        return done.stdout


class Container:
    """A container of an image, in which commands run one after the other."""

    def __init__(self, builder: Builder, image: str) -> None:
        self.builder = builder
        self.name = builder("from", "--pull-never", image).split()[-1]

    def command(self, *words: str, folder: Path | None = None, user: str = "") -> list[str]:
        """Return the command that runs `words` in the container.

        Without `user`, the image's user runs it. `folder` is mounted at the same path.
        """
        options = ["--user", user] if user else []
        options += ["--volume", f"{folder}:{folder}", "--workingdir", str(folder)] if folder else []
        return [*self.builder.command, "run", *options, self.name, "--", *words]

    def run(self, *words: str, check: bool = True, **options) -> subprocess.CompletedProcess[str]:
        """Run a command without a network."""
        done = subprocess.run(
            ["unshare", "--net", *self.command(*words, **options)],
            env=self.builder.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stdout
        return done


@contextmanager
def opened_builder(folder: Path) -> Iterator[Builder]:
    """Open a builder in a new folder, and remove everything at the end."""
    builder = Builder(folder)
    try:
        yield builder
    finally:
        builder.close()
        left = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        left = [path for path in left if Path(path).is_relative_to(folder)]
        for path in reversed(left):
            subprocess.run(["umount", path], check=False)
        # Never through a mount.
        if not any(os.path.ismount(path) for path in left):
            shutil.rmtree(folder)
        assert not left, f"Buildah left mounts: {left}"


def _mirror() -> str | None:
    """Return the address from which this machine gets packages of the release, if it does."""
    if not shutil.which("apt-get"):
        return None
    form = ("--format", "$(CODENAME) $(COMPONENT) $(REPO_URI)", "Created-By: Packages")
    done = subprocess.run(
        ["apt-get", "indextargets", *form], capture_output=True, text=True, check=True
    )
    found = [line.split(maxsplit=2) for line in done.stdout.splitlines()]
    return next((address for name, *_, address in found if name == RELEASE), None)


def _give_settings_of_pip(root: Path) -> None:
    """Let pip in `root` find packages where pip of this machine finds them."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    settings = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        settings[name.rpartition(".")[2]] = value.strip("'")
    lines = [f"{name} = {settings[name]}\n" for name in _PIP_SETTINGS if name in settings]
    if "cert" in settings:
        shutil.copyfile(settings["cert"], root / "etc/certificates-of-pip.crt")
        lines.append("cert = /etc/certificates-of-pip.crt\n")
    (root / "etc/pip.conf").write_text("".join(["[global]\n", *lines]))
