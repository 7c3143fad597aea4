"""Jobs on machines that share no folder with this one, as on Kubernetes.

A submit command runs each job in a new empty folder, with an environment that holds only what a
container would: the programs, and lowrank.
"""

import json
import os
import sys
from pathlib import Path

import pytest
import s3_server
from projects import RESULT, VARIANT, Project
from s3_server import ACCESS_KEY, ADDRESS, PREFIX, SECRET_KEY, Server

pytestmark = pytest.mark.slow

SUBMIT = """\
#!/bin/sh
# Run a job to its end, and print its number and how it ended.
folder=$(mktemp -d {root}/job.XXXXXX)
cp "$1" "$folder.sh"
cd "$folder"
if env -i PATH="{programs}" HOME="$folder" PYTHONPATH="{sources}" NO_PROXY=127.0.0.1 \\
    sh "$folder.sh" > "$folder.log" 2>&1
then echo success > "$folder.state"
else echo failed > "$folder.state"
fi
echo "$folder"
"""


@pytest.fixture
def submit(tmp_path: Path, project: Project) -> tuple[str, ...]:
    """Return the options of Snakemake with which each job runs in a folder of its own."""
    if reason := s3_server.missing("snakemake_executor_plugin_cluster_generic"):
        pytest.skip(reason)
    root = tmp_path / "elsewhere"
    root.mkdir()
    script = root / "submit"
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    sources = project.folder / "src"
    script.write_text(SUBMIT.format(root=root, programs=programs, sources=sources))
    script.chmod(0o755)
    status = root / "status"
    status.write_text('#!/bin/sh\ncat "$1.state"\n')
    status.chmod(0o755)
    return (
        *("--executor", "cluster-generic", "--jobs", "2"),
        *("--cluster-generic-submit-cmd", str(script)),
        *("--cluster-generic-status-cmd", str(status)),
        *("--shared-fs-usage", "none", "--job-deploy-sources"),
        *("--seconds-between-status-checks", "1"),
        *("--groups", "select_ranks=round", "decompose=round", "finetune=round"),
    )


def test_jobs_without_a_shared_folder_build_a_result(
    stored: Project, server: Server, submit, tmp_path: Path, monkeypatch
):
    # As on Kubernetes, the credentials reach the jobs through Snakemake.
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SNAKEMAKE_STORAGE_S3_ACCESS_KEY", ACCESS_KEY)
    monkeypatch.setenv("SNAKEMAKE_STORAGE_S3_SECRET_KEY", SECRET_KEY)
    monkeypatch.setenv("SNAKEMAKE_STORAGE_S3_ENDPOINT_URL", server.address)
    storage = ("--default-storage-provider", "s3")
    prefix = ("--default-storage-prefix", ADDRESS)
    run = stored.run("snakemake", *submit, *storage, *prefix, "--", RESULT, check=False)
    logs = sorted((tmp_path / "elsewhere").glob("*.log"))
    assert run.returncode == 0, "\n".join([run.stdout, *(path.read_text() for path in logs)])
    result = json.loads(server.read(f"{PREFIX}/{RESULT}"))
    assert result["int8"]["accuracy"]
    assert server.keys(f"{PREFIX}/models/{VARIANT}/{VARIANT}_int8.onnx")
    assert server.keys(f"{PREFIX}/build/resnet20/tucker/int8/")
    # Rules that read files of this folder ran here, the others elsewhere.
    elsewhere = "\n".join(path.read_text() for path in logs)
    for rule in ("select_ranks", "decompose", "finetune", "export_onnx", "quantize", "benchmark"):
        assert f"rule {rule}:" in elsewhere, rule
    for rule in ("checkpoint", "splits", "dataset", "inspect", "summarize"):
        assert f"rule {rule}:" not in elsewhere, rule
