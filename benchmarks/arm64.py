"""Test the code for other machines on an emulated ARM64 Linux. The latencies are meaningless.

    python benchmarks/arm64.py [--models ORIGINAL COMPRESSED]

Python, NumPy and ONNX Runtime for ARM64, from their ordinary packages, run under user-mode
emulation (Debian's qemu-user-static). They are used like a device behind SSH, with a shell instead
of the SSH client. All files are sent, both models are measured, and their outputs are compared with
those on this machine. The exit status is 1 if an output differs by more than 1e-4. The default
models are the shipped VGG-16 and its `tucker`, from `snakemake build/vgg16/tucker/model.onnx`.
Needs apt-get and pip. Downloads are kept in build/arm64/.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.config.device_kinds import create_device
from lowrank.files import write_json

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build/arm64"
RESULTS = Path(__file__).parent / "results" / "arm64.json"
MODELS = ["build/vgg16/original/model.onnx", "build/vgg16/tucker/model.onnx"]
MAX_DIFFERENCE = 1e-4

# The emulator shows the host's /proc/cpuinfo, with which ONNX Runtime for ARM fails. A file in the
# emulated system has precedence. The emulated processor is a Cortex-A72.
PROCESSOR = """processor\t: {}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""

# Platform tags of wheels for ARM64 Linux, for versions of glibc up to Debian's.
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
SETTINGS = {"sittings": 1, "repeats": 2, "seconds": 0.0, "warmup_seconds": 0.0, "energy_seconds": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs=2, type=Path, default=[ROOT / path for path in MODELS])
    original, compressed = models = parser.parse_args().models
    python = emulated_python()
    shell = script(FOLDER / "shell", 'for line; do :; done\nexec sh -c "$line"')
    arm64_device = create_device(
        "arm64",
        {"kind": "ssh", "host": "arm64", "command": str(shell), "python": str(python)}
        | {"folder": str(FOLDER / "there")},
    )
    local_device = create_device("local", {})
    environment = arm64_device.environment(SETTINGS)
    print(environment)
    # Only tests that a measurement works. The latencies are not used.
    arm64_device.measure(original, compressed, SETTINGS)
    rows, missed = [], environment["machine"] != "aarch64"
    for name, model in zip(("original", "compressed"), models, strict=True):
        actual, expected = (
            np.array(d.outputs(model, SETTINGS)) for d in (arm64_device, local_device)
        )
        largest, difference = (
            float(np.abs(values).max()) for values in (expected, actual - expected)
        )
        row = {"model": name, "largest": largest, "largest_difference": difference}
        print(row, flush=True)
        rows.append(row)
        missed |= not difference <= MAX_DIFFERENCE
    write_json(RESULTS, {"environment": environment, "rows": rows})
    sys.exit(missed)


def emulated_python() -> Path:
    """Create a command that runs Python for ARM64 with NumPy and ONNX Runtime."""
    system, packages = FOLDER / "system", FOLDER / "packages"
    python = system / "usr/bin/python3.11"
    if not python.exists():
        # Unpacked into a separate folder, so that this system is not changed.
        unpack(FOLDER / "apt-arm64", "arm64", ["python3", "libstdc++6"], system)
    cpuinfo = system / "proc/cpuinfo"
    cpuinfo.parent.mkdir(exist_ok=True)
    cpuinfo.write_text("".join(PROCESSOR.format(core) for core in range(os.cpu_count() or 1)))
    emulator = FOLDER / "host/usr/bin/qemu-aarch64-static"
    if not emulator.exists():
        host = run("dpkg", "--print-architecture").strip()
        unpack(FOLDER / f"apt-{host}", host, ["qemu-user-static"], FOLDER / "host")
    if not packages.exists():
        version = run(sys.executable, "-c", "import onnxruntime as o; print(o.__version__)").strip()
        run(
            *(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(packages)),
            *("--only-binary=:all:", "--python-version", "3.11"),
            *(part for platform in PLATFORMS for part in ("--platform", platform)),
            *("numpy", f"onnxruntime=={version}"),
        )
    command = FOLDER / "python"
    # `-0` sets the name of the program to this command, so that Python starts itself by emulation.
    return script(
        command,
        f'PYTHONPATH={packages} exec {emulator} -0 {command} -L {system} {python} "$@"',
    )


def unpack(apt: Path, architecture: str, packages: list[str], folder: Path) -> None:
    """Unpack Debian packages of an architecture and their dependencies into a folder."""
    for subfolder in ("state/lists/partial", "cache/archives/partial"):
        (apt / subfolder).mkdir(parents=True, exist_ok=True)
    (apt / "status").touch()
    options = {
        "APT::Architecture": architecture,
        "APT::Architectures": architecture,
        "Dir::State": apt / "state",
        "Dir::Cache": apt / "cache",
        "Dir::State::status": apt / "status",
        "Debug::NoLocking": 1,
        "APT::Sandbox::User": "root",
    }
    command = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in options.items())]
    run(*command, "update")
    run(*command, "-y", "--no-install-recommends", "--download-only", "install", *packages)
    for archive in sorted((apt / "cache/archives").glob("*.deb")):
        run("dpkg-deb", "-x", str(archive), str(folder))


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def run(*command: str) -> str:
    done: Any = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    main()
