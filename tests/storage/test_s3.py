"""The workflow with its files on S3: `--default-storage-provider s3`."""

import json
from pathlib import Path

import pytest
from projects import RESULT, VARIANT, Project, job_counts
from s3_server import Server

pytestmark = pytest.mark.slow

PREFIX = "tiny"
COPIES = ".snakemake/storage/s3/study/tiny"


def local_files(project: Project) -> set[str]:
    """Return the files that runs write, if they are in the folder of the project itself."""
    folders = ("build", "models", "results", "data/datasets")
    paths = [path for folder in folders for path in (project.folder / folder).rglob("*")]
    return {str(path.relative_to(project.folder)) for path in paths if path.is_file()}


def test_all_files_of_a_run_are_on_s3(stored: Project, server: Server, options, tmp_path: Path):
    before = local_files(stored)
    output = stored.snakemake(*options, RESULT)
    assert "The outputs are in s3://study/tiny, and not recorded in dvc.lock." in output
    result = json.loads(server.read(f"{PREFIX}/{RESULT}"))
    assert result["int8"]["latency_ms"]["local"]["compressed"]["p50"] > 0
    delivered = {key.rpartition("/")[2] for key in server.keys(f"{PREFIX}/models/{VARIANT}/")}
    assert {f"{VARIANT}.onnx", f"{VARIANT}_int8.onnx"} <= delivered
    keys = server.keys(f"{PREFIX}/")
    for place in ("build/resnet20/original/int8/", "build/resnet20/original/splits/", "logs/"):
        assert any(key.startswith(f"{PREFIX}/{place}") for key in keys), place
    # Temporary files are removed there, too, and nothing but caches of this machine is here.
    assert not [key for key in keys if "/moments/" in key]
    written = local_files(stored) - before
    caches = ("build/resume/", "build/latencies/", "build/table_code/")
    assert not [path for path in written if not path.startswith(caches)]
    assert not (stored.folder / "dvc.lock").exists()

    assert job_counts(stored.snakemake(*options, "--dry-run", RESULT)) == {}
    # Another clone has nothing to do either.
    clone = stored.copy_to(tmp_path / "clone")
    for place in (".snakemake", "build"):
        stored.run("rm", "-rf", str(clone.folder / place))
    assert job_counts(clone.snakemake(*options, "--dry-run", RESULT)) == {}


def test_the_overview_reads_the_results_of_s3(stored: Project, server: Server, options):
    # A result of this folder is that of another run.
    wrong = stored.folder / RESULT
    wrong.parent.mkdir(parents=True, exist_ok=True)
    wrong.write_text("{}")
    (stored.folder / "results/resnet20_lowrank.json").write_text("{}")
    stored.snakemake(*options)
    table = server.read(f"{PREFIX}/results/summary.csv").decode()
    assert "resnet20,tucker" in table.replace(" ", "")
    assert "lowrank" not in table
    assert wrong.read_text() == "{}"


def test_a_changed_parameter_replaces_the_folders_of_s3(stored: Project, server: Server, options):
    stored.snakemake(*options, RESULT)
    assert server.keys(f"{PREFIX}/models/{VARIANT}/{VARIANT}_int8.onnx")
    stored.change_params(methods__tucker__quantize=None)
    output = stored.snakemake(*options, RESULT)
    assert "finetune" not in output
    assert not server.keys(f"{PREFIX}/models/{VARIANT}/{VARIANT}_int8.onnx")
    assert server.keys(f"{PREFIX}/models/{VARIANT}/{VARIANT}.onnx")
    assert "int8" not in json.loads(server.read(f"{PREFIX}/{RESULT}"))


def test_a_stage_of_dvc_refuses_storage(stored: Project, options):
    run = stored.run("env", "DVC_STAGE=summarize", "snakemake", *options, RESULT, check=False)
    assert run.returncode != 0
    assert "the stage `summarize` of DVC expects its outputs in this folder" in run.stdout
