"""The control of every result, the original in int8, and methods of int8 alone."""

import hashlib
import json

import pytest
from projects import BUILD, RESULT, Project, job_counts

INT8 = "results/resnet20_int8.json"


def test_a_result_contains_the_original_in_int8(built_once: Project):
    result = json.loads((built_once.folder / RESULT).read_text())
    control, int8 = result["control"]["int8"], result["int8"]
    report = json.loads((built_once.folder / BUILD / "original/int8/report.json").read_text())
    file = report["files"][report["devices"]["local"]]
    assert control["accuracy"]["exported"] == file["accuracy"]["test"]["top1"]
    assert control["size_bytes"]["compressed"] == file["size_bytes"]
    assert control["size_bytes"]["original"] == result["size_bytes"]["original"]
    # The keys are the same as for the compressed network in int8.
    assert control.keys() == int8.keys()
    latency = control["latency_ms"]["local"]
    assert latency["speedup_low"] <= latency["speedup"] <= latency["speedup_high"]
    assert int8["latency_ms"]["local"]["speedup_over_control"] > 0
    metrics = json.loads((built_once.folder / "results/metrics/resnet20_tucker.json").read_text())
    assert metrics["control"]["int8"]["accuracy"]["exported"] == control["accuracy"]["exported"]
    assert (
        "| resnet20 | original | int8 |" in (built_once.folder / "results/summary.md").read_text()
    )


def test_a_result_names_its_commit_and_command(built_once: Project):
    result = json.loads((built_once.folder / RESULT).read_text())
    commit = built_once.run("git", "rev-parse", "HEAD").stdout.strip()
    assert result["commit"] == commit
    assert result["command"] == f"snakemake --cores all {RESULT}"
    assert result["environment"]["local"]["cpu"]


@pytest.mark.slow
def test_int8_alone_trains_nothing_and_is_the_control(project: Project):
    project.change_params(methods__int8={"quantize": "int8"}, benchmark__local__repeats=5)
    overridden = "quantize={images: 10}"
    arguments = ("--config", overridden, "--", INT8)
    jobs = job_counts(project.snakemake("--dry-run", *arguments))
    assert not {"teacher_outputs", "finetune", "decompose", "calibrate"} & jobs.keys()
    project.snakemake(*arguments)
    result = json.loads((project.folder / INT8).read_text())
    assert (result["rounds"], result["finetune"]["steps"]) == (0, 0)
    assert result["int8"]["accuracy"] == result["control"]["int8"]["accuracy"]
    assert result["int8"]["latency_ms"]["local"]["speedup_over_control"] == 1
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.onnx")}
        for folder in (project.folder / BUILD / name for name in ("int8/int8", "original/int8"))
    ]
    assert digests[0] == digests[1] != {}
    # The command contains the override, and params.yaml was edited after the commit.
    assert "quantize={images:" in result["command"]
    assert result["commit"].endswith("-dirty")
    page = (project.folder / "models/resnet20_int8/resnet20_int8_int8.md").read_text()
    assert "with all layers unchanged, in int8" in page
    assert result["command"] in page
    assert "Nothing to be done" in project.snakemake(*arguments)


def test_without_steps_the_originals_outputs_are_not_computed(project: Project):
    assert "teacher_outputs" in job_counts(project.snakemake("--dry-run", RESULT))
    project.change_params(finetune__steps=0)
    assert "teacher_outputs" not in job_counts(project.snakemake("--dry-run", RESULT))
