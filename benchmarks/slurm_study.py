"""Run a study of 1,000 variants to its end on a Slurm cluster, with a stand-in for the steps.

    python benchmarks/slurm_study.py [--networks 20] [--methods 50] -- --slurm-no-account

The graph, the jobs and the files are those of the study in `large_study.py`. Only the steps are
replaced: each one creates empty outputs, on one core. So the time is that of Snakemake and Slurm.
The jobs of ten variants are one job of Slurm: docs/cluster.md. No method searches. The options
behind `--` are those of Snakemake.

The number of jobs, the time and the memory of Snakemake are written to
`benchmarks/results/slurm_study.json`.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import yaml
from large_study import ROOT, write_study

from lowrank.devices.processor import Processor
from lowrank.files import write_json

RESULTS = Path(__file__).parent / "results" / "slurm_study.json"

# Rules whose jobs become one job of Slurm for some variants: docs/cluster.md.
GROUPS = {
    "variant": ("calibrate", "select_ranks", "decompose_round", "finetune", "export_onnx"),
    "int8": ("quantize",),
    "measured": ("benchmark",),
}

# Creates the outputs of a job. Only files have a suffix. `ranks.json` and others may be read.
STAND_IN = """
def command(step):
    return (
        "for path in {output:q}; do case ${{path##*/}} in "
        '*.*) echo "{{}}" > $path;; *) mkdir -p $path;; esac; done'
    )
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", type=int, default=20)
    parser.add_argument("--methods", type=int, default=50)
    parser.add_argument("--at-once", type=int, default=10, help="variants of a job of Slurm")
    parser.add_argument("snakemake", nargs="*", help="options of Snakemake")
    options = parser.parse_args()
    # Not below /tmp, which each node of a cluster has for itself.
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix="slurm_study_") as name:
        folder = Path(name)
        write_study(folder, options.networks, options.methods)
        replace_steps(folder)
        record = {
            "networks": options.networks,
            "methods": options.methods,
            "variants_of_a_slurm_job": options.at_once,
            **run(folder, options.at_once, options.snakemake),
            "cpu": Processor.here().cpu,
            "cores": os.cpu_count(),
        }
    print(record)
    write_json(RESULTS, record)


def replace_steps(folder: Path) -> None:
    """Let the steps create empty outputs, and measure on a device that needs no node."""
    path = folder / "workflow/rules/common.smk"
    text = path.read_text()
    command = re.compile(r"^command = .*$", re.MULTILINE)
    assert len(command.findall(text)) == 1
    path.write_text(command.sub(lambda _: STAND_IN.strip(), text))
    # Training would run in a process of its own, which takes longer than the stand-in.
    path = folder / "workflow/Snakefile"
    text = path.read_text()
    path.write_text(text + 'if workflow.remote_exec:\n    workflow.localrules("finetune")\n')
    params: dict[str, Any] = yaml.safe_load((folder / "params.yaml").read_text())
    params["benchmark"] = {"board": {"kind": "ssh", "host": "board"}}
    params["matrix"]["devices"] = ["board"]
    # A stand-in needs one core.
    for name in ("select_ranks", "calibrate", "finetune", "export_onnx", "quantize"):
        params[name]["threads"] = 1
    params["decompose"]["layers_at_once"] = 1
    for entry in params["checkpoint"].values():
        entry["threads"] = 1
    for method in params["methods"].values():
        # The trials of a search wait for each other, so they cannot be one job.
        if "accuracy_drop" in method["ranks"].get("target", {}):
            method["ranks"]["target"] = {"macs": 0.5}
    (folder / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def run(folder: Path, at_once: int, options: list[str]) -> dict[str, Any]:
    """Run the study, and return the number of jobs, the time and the memory of Snakemake."""
    profile: dict[str, Any] = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())
    profile["groups"] = [f"{rule}={group}" for group in GROUPS for rule in GROUPS[group]]
    profile["group-components"] = [f"{group}={at_once}" for group in GROUPS]
    # One variant after the other.
    profile["cores"] = 1
    (folder / "profiles/variants").mkdir()
    (folder / "profiles/variants/config.yaml").write_text(yaml.safe_dump(profile))
    command = [sys.executable, "-m", "snakemake", "--profile", "profiles/variants", *options]
    started = time.monotonic()
    with (folder / "output").open("w+") as output:
        process = psutil.Popen(
            command,
            cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT / "src")},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        peak, first = 0, 0.0
        while process.poll() is None:
            try:
                peak = max(peak, process.memory_info().rss)
            except psutil.NoSuchProcess:
                break
            if not first and any(folder.glob(".snakemake/slurm_logs/*")):
                first = time.monotonic() - started
            time.sleep(0.5)
        seconds = time.monotonic() - started
        output.seek(0)
        text = output.read()
    if process.returncode != 0:
        print(text[-5000:])
        raise SystemExit(f"Snakemake ended with status {process.returncode}.")
    jobs = int(re.findall(r"^total\s+(\d+)$", text, re.MULTILINE)[0])
    submitted = len(re.findall("submitted with SLURM jobid", text))
    return {
        "jobs": jobs,
        "slurm_jobs": submitted,
        "seconds": round(seconds),
        "seconds_before_first_job": round(first),
        "jobs_per_minute": round(60 * jobs / seconds),
        "slurm_jobs_per_minute": round(60 * submitted / seconds, 1),
        "snakemake_gib": round(peak / 2**30, 2),
        "results": len(list(folder.glob("results/network*.json"))),
    }


if __name__ == "__main__":
    main()
