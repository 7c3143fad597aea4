"""The profile for Kubernetes, in a dry run: no cluster is asked."""

import importlib.util

import pytest
import yaml
from projects import RESULT, ROOT, Project, job_counts
from s3_server import ADDRESS, Server

pytestmark = pytest.mark.seconds


@pytest.fixture
def dry_run(stored: Project, server: Server):
    """Return a function that runs Snakemake with the profile and further options, but no job."""
    if importlib.util.find_spec("snakemake_executor_plugin_kubernetes") is None:
        pytest.skip("not installed: snakemake-executor-plugin-kubernetes")

    def run(*options: str) -> str:
        return stored.run(
            *("snakemake", "--dry-run", "--profile", "profiles/kubernetes"),
            *("--default-storage-prefix", ADDRESS),
            *("--storage-s3-endpoint-url", server.address, *options, "--", RESULT),
        ).stdout

    return run


def test_a_dry_run_with_the_profile_lists_the_jobs(dry_run):
    output = dry_run()
    counts = job_counts(output)
    assert counts["finetune"] == 1
    assert counts["decompose"] == 2
    # The dataset is on the server.
    assert "dataset" not in counts
    assert f"{ADDRESS}/{RESULT}" in output
    # A job without a GPU must not ask for one: the plugin refuses it without a manufacturer.
    assert "gpu" not in output


def test_the_lines_of_the_profile_for_gpus_are_valid(dry_run):
    lines = (ROOT / "profiles/kubernetes/config.yaml").read_text().splitlines()
    start = lines.index("# set-resources:")
    text = "\n".join(line.removeprefix("# ") for line in lines[start : start + 5])
    output = dry_run("--set-resources", *yaml.safe_load(text)["set-resources"])
    # Of one job: the command of the run is also in the output, with quotes.
    (resources,) = [line for line in output.splitlines() if "gpu_manufacturer=nvidia" in line]
    for resource in ("gpu=1", "scale=0", "machine_type=n1-standard-8"):
        assert resource in resources.split(", ")
