"""Measure how long Snakemake needs to read a study of 1,000 variants, and how much memory.

    python benchmarks/large_study.py [--networks 20] [--methods 50] [--profile FILE]

The study has networks like ResNet-20 and methods of all kinds: at once, with a round for each group
of layers, for targets of MACs, and searching. `snakemake -n` builds the graph of all jobs and runs
none. The time and the peak memory of the process, and the number of jobs, are written to
`benchmarks/results/large_study.json`. `--profile` writes a profile of cProfile instead.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml

from lowrank.devices.processor import Processor
from lowrank.files import write_json

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results" / "large_study.json"

TUCKER = {"first_conv": "tucker1", "conv": "tucker2", "linear": "svd"}
CP = {"first_conv": "channel_svd", "conv": "cp_tpm", "linear": "svd"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--methods", type=int, default=50)
    parser.add_argument("--profile", type=Path, help="file for a profile of cProfile")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_study(Path(folder), options.networks, options.methods)
        if options.profile:
            profile(Path(folder), options.profile.resolve())
            return
        print(measure(Path(folder)))
        # The second run finds the layer tables.
        record = {
            "networks": options.networks,
            "methods": options.methods,
            **measure(Path(folder)),
            "cpu": Processor.here().cpu,
        }
    print(record)
    write_json(RESULTS, record)


def write_study(folder: Path, networks: int, methods: int) -> None:
    """Write a project with a configuration of networks x methods variants."""
    for name in ("workflow", "profiles", "data/networks", "data/checkpoints"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "Snakefile", folder)
    params: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())
    entry = params["checkpoint"]["resnet20"] | {"network": "resnet20"}
    names = [f"network{number}" for number in range(networks)]
    params["checkpoint"] = dict.fromkeys(names, entry)
    params["methods"] = {f"method{number}": method_of(number) for number in range(methods)}
    params["matrix"] |= {"models": names, "methods": list(params["methods"])}
    params["pretrain"], params["studies"] = {}, {}
    params["decompose"]["jobs"] = "round"
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def method_of(number: int) -> dict[str, Any]:
    """Return the settings of a method: four kinds in turn, with different ranks."""
    share = 0.9 - number / 200
    kinds: list[dict[str, Any]] = [
        {"factorize": TUCKER, "ranks": {"weaken": share}},
        {
            "factorize": CP,
            "ranks": {"select": "ratio", "ratio": 1 / share},
            "schedule": {"kind": "iterative", "group": 5},
        },
        {
            "factorize": TUCKER | {"norm": "activation"},
            "ranks": {"select": "budget", "target": {"macs": share}},
        },
        {
            "factorize": TUCKER | {"norm": "activation"},
            "ranks": {"select": "budget", "target": {"accuracy_drop": 1.0}},
            "quantize": "int8",
        },
    ]
    return kinds[number % len(kinds)]


def command() -> list[str]:
    """Return the command that builds the graph of all jobs and runs none."""
    return ["-m", "snakemake", "--cores", "2", "--dry-run", "--quiet", "rules"]


def measure(folder: Path) -> dict[str, Any]:
    """Run the command, and return its seconds, its peak memory and the number of jobs."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    with (folder / "output").open("w+") as output:
        started = time.monotonic()
        process = psutil.Popen(
            [sys.executable, *command()],
            cwd=folder,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        peak = 0
        while process.poll() is None:
            try:
                peak = max(peak, process.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            time.sleep(0.05)
        seconds = time.monotonic() - started
        output.seek(0)
        text = output.read()
    if process.returncode != 0:
        raise SystemExit(text)
    (jobs,) = re.findall(r"^total\s+(\d+)$", text, re.MULTILINE)[:1]
    return {"seconds": round(seconds, 1), "gib": round(peak / 2**30, 2), "jobs": int(jobs)}


def profile(folder: Path, path: Path) -> None:
    """Write a profile of the command."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    program = [sys.executable, "-m", "cProfile", "-o", str(path), *command()]
    subprocess.run(program, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
