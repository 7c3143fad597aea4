"""Create a small project in its own folder, in which both engines run."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from tiny import write_tiny_dataset

from lowrank.zoo import create_network
from lowrank.zoo.weight_files import write_weights

ROOT = Path(__file__).parents[1]
VARIANT = "resnet20_tucker"
RESULT = f"results/{VARIANT}.json"
METRICS = f"results/metrics/{VARIANT}.json"
BUILD = Path("build/resnet20")

# Outputs that contain measured times, and so differ between runs.
TIMED = ("timing.json", "times.json", "local.json", f"{VARIANT}.json")
TIMED += ("summary.csv", "summary.md", "summary.html", "times_local.svg", "accuracy_by_latency.svg")

# A method that searches, with two trials of one training step.
SEARCHING = {
    "factorize": {
        "conv": "tucker2",
        "include": ["blocks.3.conv2", "blocks.4.conv2"],
        "norm": "activation",
        "images": 20,
    },
    "ranks": {
        "select": "budget",
        "images": 10,
        "negligible": 0,
        "target": {"accuracy_drop": 99.0},
        "search": {"cost": "macs", "between": [0.9, 0.98], "trials": 2},
    },
    "finetune": {"steps": 1},
}


@dataclass
class Project:
    """A copy of the workflow with a tiny dataset, random weights and short budgets."""

    folder: Path

    def run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the project. Standard output and error are returned as one text."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment() | {"PYTHONPATH": str(self.folder / "src")},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if check:
            assert done.returncode == 0, done.stdout
        return done

    def snakemake(self, *arguments: str, cores: int = 2) -> str:
        return self.run("snakemake", "--cores", str(cores), *arguments).stdout

    def change_params(self, **changes: Any) -> None:
        """Replace parameters. Their names are places in params.yaml with `__` instead of dots."""
        path = self.folder / "params.yaml"
        document = yaml.safe_load(path.read_text())
        for place, value in changes.items():
            *sections, name = place.split("__")
            section = document
            for part in sections:
                section = section[part]
            section[name] = value
        path.write_text(yaml.safe_dump(document, sort_keys=False))

    def files(self) -> dict[str, bytes]:
        """Return the outputs of the steps, except those that contain measured times."""
        outputs = [*self.folder.glob("build/resnet20/**/*"), *self.folder.glob("results/**/*")]
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(outputs)
            if path.is_file() and path.name not in TIMED
        }

    def copy_to(self, folder: Path) -> "Project":
        """Copy the project with the same file times, as if it had been built there."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Project(folder)


def job_counts(dry_run: str) -> dict[str, int]:
    """Return the number of jobs of each rule, from the table that a dry run prints."""
    if "Nothing to be done" in dry_run:
        return {}
    table = dry_run[dry_run.index("Job stats:") :].split("total")[0]
    return {rule: int(count) for rule, count in re.findall(r"^(\w+)\s+(\d+)$", table, re.MULTILINE)}


def environment() -> dict[str, str]:
    programs = str(Path(sys.executable).parent)
    return os.environ | {
        "PATH": os.pathsep.join([programs, os.environ["PATH"]]),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "test",
        "GIT_AUTHOR_EMAIL": "test@example.org",
        "GIT_COMMITTER_NAME": "test",
        "GIT_COMMITTER_EMAIL": "test@example.org",
        # Results and pictures name their commit. With fixed dates, equal files give equal commits.
        "GIT_AUTHOR_DATE": "1767225600 +0000",
        "GIT_COMMITTER_DATE": "1767225600 +0000",
    }


def make_project(folder: Path) -> Project:
    copied = ("Snakefile", "dvc.yaml", "params.yaml", "pyproject.toml", ".gitignore", ".dvcignore")
    for name in copied:
        folder.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, folder)
    # The sources are dependencies of the stages, and the project's commands run them.
    for name in ("workflow", "profiles", "data/networks", "src/lowrank"):
        shutil.copytree(ROOT / name, folder / name)
    project = Project(folder)
    project.change_params(
        matrix={"models": ["resnet20"], "methods": ["tucker"], "devices": ["local"]},
        # Only two of twenty layers, so that a run takes seconds.
        methods__tucker__factorize={"first_conv": "tucker1", "linear": "svd"},
        # Without these settings all layers would stay dense: EVBMF finds no structure in random
        # weights, and the classifier is negligible.
        methods__tucker__ranks={"weaken": 0.2, "negligible": 0},
        methods__tucker__finetune={},
        # Its entry for ResNet-56 names a network that this project does not have.
        methods__lowrank__finetune={},
        methods__tucker__quantize="int8",
        # The int8 files must not depend on measured times.
        quantize={"images": 20, "tolerance": 100, "threads": 1, "by_time": False},
        finetune__steps=4,
        finetune__batch_size=16,
        finetune__threads=1,
        finetune__curve_every_steps=2,
        checkpoint__resnet20__threads=1,
        teacher_outputs__threads=1,
        export_onnx__threads=1,
        benchmark__local={"sittings": 1, "repeats": 4, "seconds": 0.01, "warmup_seconds": 0},
        studies={},
    )
    # DVC has stages for every entry of `checkpoint`.
    params = yaml.safe_load((folder / "params.yaml").read_text())
    project.change_params(checkpoint={"resnet20": params["checkpoint"]["resnet20"]})
    torch.manual_seed(0)
    weights = folder / "data/checkpoints/resnet20.safetensors"
    write_weights(weights, create_network("resnet20"), dtype=torch.float16)
    write_tiny_dataset(folder / "data/datasets/cifar10", train=200, test=50)
    project.run("git", "init", "--quiet", "--initial-branch=main")
    project.run("dvc", "init", "--quiet")
    shutil.copytree(ROOT / ".dvc/plots", folder / ".dvc/plots")
    project.run("dvc", "config", "core.analytics", "false")
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "start")
    return project
