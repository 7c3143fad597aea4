"""The workflow on a real Slurm cluster of one node, through profiles/slurm."""

import re
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from projects import BUILD, RESULT, Project, environment
from slurm_node import Node

from lowrank.files import read_json

pytestmark = pytest.mark.slow

# The node of the test has no accounting database, and its short jobs need frequent checks.
OPTIONS = (
    *("--profile", "profiles/slurm", "--slurm-no-account"),
    *("--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "2"),
)
LONG_TRAINING = {"finetune__steps": 600, "finetune__curve_every_steps": 50}


def submit(project: Project, *targets: str) -> subprocess.CompletedProcess[str]:
    """Run targets through the profile, as a user on a login node does."""
    return project.run("snakemake", *OPTIONS, *targets, check=False)


def slurm_jobs(output: str) -> list[int]:
    """Return the numbers of the jobs that a run submitted, from what it printed."""
    return [int(number) for number in re.findall(r"submitted with SLURM jobid (\d+)", output)]


def outputs_without_times(project: Project) -> dict[str, bytes]:
    """Return the outputs that do not depend on the machine or on measured times."""
    # DVC's files and Snakemake's notes are not among them.
    return {path: content for path, content in project.files().items() if "/benchmark/" not in path}


def test_result_equals_that_of_a_local_run(node: Node, project: Project, tmp_path: Path):
    local = project.copy_to(tmp_path / "local")
    local.snakemake(RESULT)
    run = submit(project, RESULT, "--slurm-keep-successful-logs")
    assert run.returncode == 0, run.stdout
    assert outputs_without_times(project) == outputs_without_times(local)
    # A round is one job: its ranks, two layers and its training.
    assert len(slurm_jobs(run.stdout)) == 10
    assert (project.folder / "logs/finetune/resnet20/tucker/1.log").read_text()
    # A job starts Snakemake once, and once more for training.
    logs = (project.folder / ".snakemake/slurm_logs").rglob("*.log")
    starts = {log.parts[-2]: log.read_text().count("Building DAG of jobs") for log in logs}
    rounds = [name for name in starts if name.startswith("group_round")]
    assert [starts.pop(name) for name in rounds] == [2]
    assert set(starts.values()) == {1}


def test_dvc_runs_its_stages_through_the_profile(node: Node, project: Project):
    profile = yaml.safe_load((project.folder / "profiles/slurm/config.yaml").read_text())
    names = [option.removeprefix("--") for option in OPTIONS[2:]]
    own = dict(zip(names[1::2], names[2::2], strict=True)) | {"slurm-no-account": True}
    folder = project.folder / "profiles/own"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(profile | own))
    stage = "select_ranks@resnet20-tucker"
    run = project.run("env", "SNAKEMAKE_PROFILE=profiles/own", "dvc", "repro", stage, check=False)
    assert run.returncode == 0, run.stdout
    # The splits, the checkpoint and the ranks, among others.
    assert len(slurm_jobs(run.stdout)) >= 3
    assert (project.folder / BUILD / "tucker/first/ranks.json").is_file()
    again = project.run("dvc", "repro", stage)
    assert "Running stage" not in again.stdout


def test_reason_of_a_failed_job_reaches_the_terminal(node: Node, project: Project):
    project.change_params(methods__tucker__ranks={"select": "fixed", "table": {"conv": [99, 99]}})
    run = submit(project, RESULT)
    assert run.returncode != 0
    assert "error: " in run.stdout
    reason = (project.folder / "logs/select_ranks/resnet20/tucker/first.log").read_text()
    assert reason.splitlines()[-1].partition("error: ")[2] in run.stdout


def test_requeued_training_ends_with_the_bytes_of_an_undisturbed_run(
    node: Node, project: Project, tmp_path: Path
):
    project.change_params(**LONG_TRAINING)
    undisturbed = project.copy_to(tmp_path / "undisturbed")
    trained = str(BUILD / "tucker/rounds/1/model.safetensors")
    undisturbed.snakemake(trained)

    log = project.folder / "logs/finetune/resnet20/tucker/1.log"
    with (tmp_path / "output").open("w+") as output:
        run = subprocess.Popen(
            ["snakemake", *OPTIONS, trained],
            cwd=project.folder,
            env=environment() | {"PYTHONPATH": str(project.folder / "src")},
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
        )
        wait_for(lambda: log.exists() and re.search(r"step \d+/600 ", log.read_text()))
        (running,) = node.run("squeue", "-h", "-t", "R", "-o", "%i").split()
        node.run("scontrol", "requeue", running)
        assert run.wait(timeout=600) == 0, (tmp_path / "output").read_text()
    assert re.search(r"resumed from the state saved at step [1-9]\d* of 600", log.read_text())
    assert (project.folder / trained).read_bytes() == (undisturbed.folder / trained).read_bytes()


@pytest.mark.timeout(1800)
def test_training_continues_after_the_time_of_its_job(node: Node, project: Project, tmp_path: Path):
    project.change_params(**LONG_TRAINING | {"finetune__steps": 2500})
    trained = str(BUILD / "tucker/rounds/1/model.safetensors")
    # The job of the round would have the time of all its steps.
    project.snakemake("--until", "decompose", "teacher_outputs", "--", trained)
    undisturbed = project.copy_to(tmp_path / "undisturbed")
    # A minute is Slurm's shortest time. Slurm sends the signal up to half a minute earlier than
    # stated, so training has begun. Later attempts have more time, because an old processor needs
    # minutes.
    rules = project.folder / "workflow/rules/compress.smk"
    estimate = "GRAPH.resources.training_minutes(GRAPH.compress.finetune)"
    assert rules.read_text().count(estimate) == 1
    short = "lambda wildcards, attempt: 4 ** (attempt - 1)"
    rules.write_text(rules.read_text().replace(estimate, short))
    signal = "finetune:slurm_extra='--signal=TERM@1'"
    run = submit(project, trained, "--set-resources", signal)
    assert run.returncode == 0, run.stdout
    log = (project.folder / "logs/finetune/resnet20/tucker/1.log").read_text()
    assert re.search(r"resumed from the state saved at step [1-9]\d* of 2500", log)
    undisturbed.snakemake(trained)
    assert (project.folder / trained).read_bytes() == (undisturbed.folder / trained).read_bytes()


def test_device_of_the_cluster_measures_on_its_node(node: Node, project: Project):
    device = {"kind": "slurm", "constraint": "here", "partition": "main"}
    device |= {"sittings": 1, "repeats": 4, "seconds": 0.01, "warmup_seconds": 0}
    project.change_params(benchmark={"here": device}, matrix__devices=["here"])
    refused = project.run("snakemake", "--cores", "2", "build/devices/here.json", check=False)
    assert refused.returncode != 0
    assert "device 'here' is a node of a Slurm cluster" in refused.stdout
    run = submit(project, RESULT)
    assert run.returncode == 0, run.stdout
    latencies = read_json(project.folder / RESULT)["latency_ms"]["here"]
    assert latencies["compressed"]["p50"] > 0


def wait_for(condition, seconds: float = 300) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.2)
