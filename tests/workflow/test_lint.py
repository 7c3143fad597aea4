"""The workflow keeps to Snakemake's own style, with one stated exception."""

import re
import subprocess

from projects import ROOT, Project, environment

# One environment for all rules, pinned by constraints.txt and made by the Makefile: a conda
# environment for each rule would install PyTorch once more and say nothing new.
LET_PASS = {"Specify a conda environment or container for each rule."}


def test_snakemake_lint_finds_nothing_else(project: Project):
    found = project.run("snakemake", "--lint", check=False).stdout
    titles = re.findall(r"^    \* (.+?):?$", found, re.MULTILINE)
    assert titles, found
    assert set(titles) <= LET_PASS


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
