"""Compare ResNet-50 by `lowrank` with networks of other tools: the same MACs, without training.

    python benchmarks/peers.py IMAGES [--peers NAME ...] [--measure-only]

IMAGES, network and measurements are those of `imagenet.py`. Each tool has a program and a list of
packages in `peers/`. It runs in an environment of its own in `build/peers/`, sees the images for
calibration and the original, and writes ONNX files. All files are measured here, by the same code.
`--measure-only` measures the files again that are there. An environment whose list has changed is
made again. PyTorch takes 5 GB; it is installed once for all.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import imagenet
import keras_resnet50
import numpy as np

from lowrank.files import write_json
from lowrank.onnx_files.counts import count

HERE = Path(__file__).parent
BUILD = HERE.parent / "build/peers"
RESULTS = HERE / "results" / "peers.json"
TARGET = 0.7
OURS = "lowrank"
# The program of each tool and its name. The version is that of the tool's list of packages.
PEERS = {
    "torch_pruning_channels": "torch-pruning",
    "tensorly_tucker": "tensorly-torch",
    "fasterai_decomposition": "fasterai",
    "nncf_int8": "nncf",
}
# These quantize the original.
IN_INT8 = ("nncf_int8",)
# What every program needs, at the versions of this project.
SHARED = ("torch", "torchvision", "numpy", "onnx", "onnxscript", "pillow", "safetensors")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--peers", nargs="+", choices=(OURS, *PEERS), default=[OURS, *PEERS])
    parser.add_argument("--threads", type=int, default=2, help="threads of the compressors")
    parser.add_argument("--measure-only", action="store_true")
    options = parser.parse_args()
    paths = sorted(options.images.glob("*.jpg"))
    if not paths:
        parser.error(
            f"{options.images}: no files '<class index>_<anything>.jpg'. Name their folder."
        )
    if options.measure_only and not list(BUILD.glob("*/networks.json")):
        parser.error(f"{BUILD}: no networks to measure. Run once without --measure-only.")
    BUILD.mkdir(parents=True, exist_ok=True)
    measured = imagenet.Measured("resnet50", paths, BUILD)
    if not options.measure_only:
        np.save(BUILD / "calibration.npy", keras_resnet50.images(paths[::2]).numpy())
        for name in options.peers:
            folder = BUILD / name
            folder.mkdir(exist_ok=True)
            if name == OURS:
                compress(options.images, options.threads, folder)
            else:
                run(name, measured.in_float, options.threads, folder)
    measure(measured, options.threads)


def compress(images: Path, threads: int, folder: Path) -> None:
    """Compress by `lowrank`, and write the network as a program of a tool does."""
    targets = [f"macs={TARGET}"]
    ((target, costs),) = imagenet.in_own_process(
        images, "resnet50", "low rank", targets, threads, folder
    )
    (folder / f"{target}.onnx").rename(folder / "as_it_is.onnx")
    settings = "Tucker-2, spatial SVD and SVD, fitted to outputs"
    record: dict[str, Any] = {"file": "as_it_is.onnx", "network": "as_it_is", "tried": {}}
    record["settings"] = settings
    record |= {key: costs[key] for key in ("seconds", "processor_seconds")}
    write_json(folder / "networks.json", [record])


def run(name: str, original: Path, threads: int, folder: Path) -> None:
    """Run the program of a tool in its environment."""
    command = [str(environment(name)), str(HERE / "peers" / f"{name}.py"), str(folder)]
    command += ["--original", str(original), "--images", str(BUILD / "calibration.npy")]
    subprocess.run([*command, "--macs", str(TARGET), "--threads", str(threads)], check=True)


def environment(name: str) -> Path:
    """Return the Python of a tool's environment, which also finds the packages shared by all."""
    constraints = HERE.parent / "constraints.txt"
    versions = pins(constraints)
    packages = [f"{package}=={versions[package]}" for package in SHARED]
    shared = installed(BUILD / "shared", [*packages, "-c", str(constraints)], {})
    visible = {"shared.pth": str(site_packages(shared))}
    of_tool = [f"{package}=={number}" for package, number in pins(packages_of(name)).items()]
    return installed(BUILD / name / "environment", of_tool, visible)


def packages_of(name: str) -> Path:
    """Return the list of packages of a tool."""
    return HERE / "peers" / f"{name}.txt"


def pins(path: Path) -> dict[str, str]:
    """Return the version of each package in a list."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("==") for line in lines)


def installed(folder: Path, packages: list[str], files: dict[str, str]) -> Path:
    """Return the Python of an environment with these packages. Makes it if it is not there.

    `files` are written to its `site-packages` before the packages are installed.
    """
    python, marker = folder / "bin/python", folder / "packages"
    if not marker.exists() or marker.read_text().split() != packages:
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        for name, text in files.items():
            (site_packages(python) / name).write_text(text + "\n")
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
        marker.write_text("\n".join(packages) + "\n")
    return python


def site_packages(python: Path) -> Path:
    """Return the folder of the packages of an environment."""
    script = "import sysconfig; print(sysconfig.get_path('purelib'))"
    output = subprocess.run([str(python), "-c", script], check=True, capture_output=True)
    return Path(output.stdout.decode().strip())


def measure(measured: imagenet.Measured, threads: int) -> None:
    """Measure all files that are there, and write the results after each measurement.

    All files are measured as they are before those in float are quantized, which takes longer.
    """
    macs = count(measured.in_float).macs
    files, rows = [], []
    document = measured.original() | {"threads": threads, "rows": rows}
    for name in (OURS, *PEERS):
        networks = BUILD / name / "networks.json"
        for record in json.loads(networks.read_text()) if networks.exists() else []:
            file = networks.with_name(record["file"])
            in_int8 = name in IN_INT8
            version = pins(packages_of(name))[PEERS[name]] if name != OURS else None
            share = 1.0 if in_int8 else round(count(file).macs / macs, 4)
            row = {"tool": name, "version": version} | record | {"macs_share": share}
            row["int8" if in_int8 else "float"] = measured.row(file)
            print(row, flush=True)
            files.append(file)
            rows.append(row)
            write_json(RESULTS, document)
    for file, row in zip(files, rows, strict=True):
        if "int8" not in row:
            row["int8"] = measured.row_in_int8(file)
            print(row, flush=True)
            write_json(RESULTS, document)


if __name__ == "__main__":
    main()
