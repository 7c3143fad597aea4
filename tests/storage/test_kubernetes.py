"""The profile for Kubernetes, in a dry run: no cluster is asked."""

import importlib.util

import pytest
from projects import RESULT, Project, job_counts
from s3_server import BUCKET, Server

pytestmark = pytest.mark.seconds


def test_a_dry_run_with_the_profile_lists_the_jobs(stored: Project, server: Server):
    if importlib.util.find_spec("snakemake_executor_plugin_kubernetes") is None:
        pytest.skip("not installed: snakemake-executor-plugin-kubernetes")
    output = stored.run(
        *("snakemake", "--dry-run", "--profile", "profiles/kubernetes"),
        *("--default-storage-prefix", f"s3://{BUCKET}/tiny"),
        *("--storage-s3-endpoint-url", server.address, "--", RESULT),
    ).stdout
    counts = job_counts(output)
    assert counts["finetune"] == 1
    assert counts["decompose"] == 2
    # The dataset is on the server.
    assert "dataset" not in counts
    assert f"s3://{BUCKET}/tiny/{RESULT}" in output
    # A job without a GPU must not ask for one: the plugin refuses it without a manufacturer.
    assert "gpu" not in output
