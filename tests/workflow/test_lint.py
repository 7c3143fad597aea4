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


def test_each_rule_is_local_or_states_its_memory_and_time():
    snakefile = (ROOT / "workflow/Snakefile").read_text()
    local = set(re.findall(r"^    (\w+),$", snakefile.split("localrules:")[1], re.MULTILINE))
    stated, inherited = set(), {}
    for path in sorted((ROOT / "workflow/rules").glob("*.smk")):
        for block in re.split(r"^(?=rule |use rule )", path.read_text(), flags=re.MULTILINE)[1:]:
            base, rule = re.match(r"(?:use rule (\w+) as |rule )(\w+)", block).groups()
            if base:
                inherited[rule] = base
            elif re.search(r"resources:\n +mem_mb=.+,\n(?: .+\n)*? +runtime=", block):
                stated.add(rule)
            else:
                assert rule in local | {"unknown_result"}, f"{path.name}: {rule}"
    assert not stated & local
    assert all(base in stated or {rule, base} <= local for rule, base in inherited.items())
