"""What is sent to another machine, on an ARM64 Linux: emulated, so its timing means nothing.

    python benchmarks/arm64.py [--models ORIGINAL COMPRESSED]

An ARM64 Python, NumPy and ONNX Runtime from their ordinary packages run under user-mode emulation
(Debian's qemu-user-static), as a device behind SSH, of which a shell takes the place: all that is
sent is sent, and both models are measured and answer there as here. The exit status is 1 where an
answer differs by more than 1e-4. By default the models are the shipped VGG-16 and its `tucker`,
as `snakemake build/vgg16/tucker/model.onnx` leaves them; needs apt-get and pip. What was downloaded
stays in build/arm64/.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lowrank.devices import create_device
from lowrank.files import write_json

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "build/arm64"
RESULTS = Path(__file__).parent / "results" / "arm64.json"
MODELS = ["build/vgg16/original/model.onnx", "build/vgg16/tucker/model.onnx"]
MOST = 1e-4

# The emulator shows the host's /proc/cpuinfo, which ONNX Runtime takes for an ARM processor's and
# falls over; what lies in the emulated system goes first. The one that is emulated: a Cortex-A72.
PROCESSOR = """processor\t: {}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd08
CPU revision\t: 3

"""

# What the platform tags of wheels for ARM64 Linux are, of glibc up to Debian's.
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")
SETTINGS = {"sittings": 1, "repeats": 2, "seconds": 0.0, "warmup_seconds": 0.0, "energy_seconds": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs=2, type=Path, default=[ROOT / each for each in MODELS])
    models = parser.parse_args().models
    python = emulated_python()
    shell = script(FOLDER / "shell", 'for line; do :; done\nexec sh -c "$line"')
    there = create_device(
        "arm64",
        {"kind": "ssh", "host": "arm64", "command": str(shell), "python": str(python)}
        | {"folder": str(FOLDER / "there")},
    )
    here = create_device("local", {})
    environment = there.environment(SETTINGS)
    print(environment)
    # That it runs, and how; not how fast.
    there.measure(*models, SETTINGS)
    rows, missed = [], environment["machine"] != "aarch64"
    for name, model in zip(("original", "compressed"), models, strict=True):
        found, expected = (np.array(d.outputs(model, SETTINGS)) for d in (there, here))
        row = {
            "model": name,
            "largest": float(np.abs(expected).max()),
            "largest_difference": float(np.abs(found - expected).max()),
        }
        print(row, flush=True)
        rows.append(row)
        missed |= not row["largest_difference"] <= MOST
    write_json(RESULTS, {"environment": environment, "rows": rows})
    sys.exit(missed)


def emulated_python() -> Path:
    """A command that is Python on ARM64, with NumPy and ONNX Runtime."""
    system, packages = FOLDER / "system", FOLDER / "packages"
    python = system / "usr/bin/python3.11"
    if not python.exists():
        # Into a system of its own: nothing here is changed.
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
    # Its own name stands for the program, so that it starts itself again under emulation.
    return script(
        command,
        f'PYTHONPATH={packages} exec {emulator} -0 {command} -L {system} {python} "$@"',
    )


def unpack(apt: Path, architecture: str, packages: list[str], folder: Path) -> None:
    """Unpack Debian packages of an architecture, and what they need, into a folder."""
    for each in ("state/lists/partial", "cache/archives/partial"):
        (apt / each).mkdir(parents=True, exist_ok=True)
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
