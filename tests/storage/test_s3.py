"""The workflow with its files on S3: `--default-storage-provider s3`."""

import json
import shutil
from pathlib import Path

import pytest
from projects import RESULT, SEARCHING, VARIANT, Project, job_counts
from s3_server import ADDRESS, PREFIX, Server

pytestmark = pytest.mark.slow


def local_files(project: Project) -> set[str]:
    """Return the files that runs write, if they are in the folder of the project itself."""
    folders = ("build", "models", "results", "data/datasets")
    paths = [path for folder in folders for path in (project.folder / folder).rglob("*")]
    return {str(path.relative_to(project.folder)) for path in paths if path.is_file()}


def test_a_study_on_s3(stored: Project, server: Server, options, tmp_path: Path):
    # Results of this folder are those of other runs.
    other = [stored.folder / RESULT, stored.folder / "results/resnet20_lowrank.json"]
    for path in other:
        path.parent.mkdir(exist_ok=True)
        path.write_text("{}")
    before = local_files(stored)
    output = stored.snakemake(*options)
    assert f"The outputs are in {ADDRESS}, and not recorded in dvc.lock." in output
    check_files(server)
    table = server.read(f"{PREFIX}/results/summary.csv").decode()
    assert "tucker" in table
    assert "lowrank" not in table
    assert {path.read_text() for path in other} == {"{}"}
    # Nothing but caches of this machine is in the folder.
    caches = ("build/resume/", "build/latencies/", "build/table_code/")
    assert not [path for path in local_files(stored) - before if not path.startswith(caches)]
    assert not (stored.folder / "dvc.lock").exists()

    assert job_counts(stored.snakemake(*options, "--dry-run")) == {}
    # Another clone has nothing to do either.
    clone = stored.copy_to(tmp_path / "clone")
    for place in (".snakemake", "build"):
        shutil.rmtree(clone.folder / place)
    assert job_counts(clone.snakemake(*options, "--dry-run")) == {}

    # A folder of S3 keeps no file of an earlier result.
    stored.change_params(methods__tucker__quantize=None)
    output = stored.snakemake(*options, RESULT)
    assert "rule finetune:" not in output
    assert server.keys(f"{PREFIX}/models/{VARIANT}/{VARIANT}.onnx")
    assert not server.keys(f"{PREFIX}/models/{VARIANT}/{VARIANT}_int8.onnx")
    assert "int8" not in json.loads(server.read(f"{PREFIX}/{RESULT}"))


def test_a_search_and_a_report_on_s3(stored: Project, server: Server, options, tmp_path: Path):
    stored.change_params(methods={"tucker": SEARCHING})
    stored.snakemake(*options)
    folder = f"{PREFIX}/build/resnet20/tucker"
    chosen = json.loads(server.read(f"{folder}/search/chosen.json"))
    network = "rounds/1/model.safetensors"
    taken = server.read(f"{folder}/search/{chosen['taken']}/{network}")
    assert server.read(f"{folder}/{network}") == taken
    assert job_counts(stored.snakemake(*options, "--dry-run")) == {}

    stored.snakemake(*options, "--report", "report.html")
    report = (stored.folder / "report.html").read_text()
    assert f"{VARIANT}/ranks.svg" in report


def check_files(server: Server) -> None:
    """Check that the files of a result are on the server, and no temporary files."""
    result = json.loads(server.read(f"{PREFIX}/{RESULT}"))
    assert result["int8"]["latency_ms"]["local"]
    keys = server.keys(f"{PREFIX}/")
    places = ("build/resnet20/original/int8/", "build/resnet20/original/splits/", "logs/")
    networks = (f"models/{VARIANT}/{VARIANT}.onnx", f"models/{VARIANT}/{VARIANT}_int8.onnx")
    for place in (*places, *networks, "results/pictures/summary.html"):
        assert any(key.startswith(f"{PREFIX}/{place}") for key in keys), place
    assert not [key for key in keys if "/moments/" in key]


def test_a_stage_of_dvc_refuses_storage(stored: Project, options):
    run = stored.run("env", "DVC_STAGE=summarize", "snakemake", *options, RESULT, check=False)
    assert run.returncode != 0
    assert "the stage `summarize` of DVC expects its outputs in this folder" in run.stdout
