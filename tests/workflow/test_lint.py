"""The workflow follows Snakemake's own style, with one exception."""

import re
import subprocess

from projects import ROOT, Project, environment

# All rules share one environment, which constraints.txt pins and the Makefile creates. A conda
# environment for each rule would install PyTorch several times without any benefit.
ACCEPTED = {"Specify a conda environment or container for each rule."}


def test_snakemake_lint_reports_only_accepted_warnings(project: Project):
    output = project.run("snakemake", "--lint", check=False).stdout
    titles = re.findall(r"^    \* (.+?):?$", output, re.MULTILINE)
    assert titles, output
    assert set(titles) <= ACCEPTED


def test_the_workflow_is_formatted():
    done = subprocess.run(
        ["snakefmt", "--check", "Snakefile", "workflow"],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
