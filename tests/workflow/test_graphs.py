"""Both engines have the same graph: the same files, and the same jobs after a change."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import yaml
from projects import BUILD, RESULT, ROOT, SEARCHING, Project, job_counts

from lowrank.config.reading import load_params
from lowrank.graph.dvc_stages import outputs_of

# Made by the first run in a clone, so that Snakemake builds results that come from Git.
ONLY_IN_SNAKEMAKE = {"build/first_run"}

# A stage of DVC. Snakemake's rules have the digests themselves as parameters.
CODE = "code"

# A rule of Snakemake. DVC draws its own plots from the tables.
DRAW = "draw"

# DVC cannot list the results of the matrix. It depends on the folder of their tables instead, which
# change with the results.
RESULTS, TABLES = re.compile(r"results/\w+\.json"), "results/plots"


class Job(NamedTuple):
    """A job of Snakemake."""

    rule: str
    outs: set[str]
    deps: set[str]


def snakemake_jobs(project: Project, target: str = "all") -> list[Job]:
    """Return the jobs of a forced dry run, except that of the rule `all`."""
    dry = project.snakemake("--dry-run", "--forceall", target)
    jobs = []
    for rule, block in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", dry, re.MULTILINE):
        # Remove flags, as in `data/datasets/cifar10 (update)`.
        plain = re.sub(r" \((?:update|local)\)", "", block)
        listed = dict(re.findall(r"^    (input|output): (.*)$", plain, re.MULTILINE))
        if rule != "all":
            deps = set(filter(None, listed.get("input", "").split(", ")))
            jobs.append(Job(rule, set(listed["output"].split(", ")), deps))
    return jobs


def snakemake_graph(project: Project, target: str = "all") -> dict[str, dict[str, set[str]]]:
    """Return the outputs and inputs of each rule's jobs, from a forced dry run."""
    graph: dict[str, dict[str, set[str]]] = {}
    for rule, outs, deps in snakemake_jobs(project, target):
        files = graph.setdefault(rule, {"outs": set(), "deps": set()})
        files["outs"].update(outs)
        files["deps"].update(deps)
    return graph


def dvc_graph(project: Project) -> dict[str, dict[str, set[str]]]:
    """Return the outputs and dependencies of each stage, for all its instances."""
    script = (
        "import json, dvc.repo\n"
        "stages = dvc.repo.Repo('.').index.stages\n"
        "print(json.dumps([[s.name, [o.def_path for o in s.outs],"
        " [d.def_path for d in s.deps if d.protocol == 'local' and hasattr(d, 'fs_path')"
        "  and not hasattr(d, 'params')]] for s in stages]))"
    )
    listed = project.run(sys.executable, "-c", script).stdout.splitlines()[-1]
    graph: dict[str, dict[str, set[str]]] = {}
    for name, outs, deps in yaml.safe_load(listed):
        files = graph.setdefault(name.partition("@")[0], {"outs": set(), "deps": set()})
        files["outs"].update(outs)
        files["deps"].update(deps)
    return graph


def within(path: str, folders: set[str]) -> str:
    """Return the folder of `folders` that contains a file, or the file itself."""
    return next((folder for folder in folders if path.startswith(f"{folder}/")), path)


def jobs_by_stage(
    jobs: list[Job], stages: dict[str, dict[str, set[str]]]
) -> dict[str, dict[str, set[str]]]:
    """Return Snakemake's jobs as stages of DVC: each job belongs to the stage of its outputs.

    Files inside an output folder of DVC are replaced by the folder. Files that no stage has, such
    as moments, are replaced by the inputs of their jobs.
    """
    owners = {out: stage for stage, files in stages.items() for out in files["outs"]}
    all_deps = {path for files in stages.values() for path in files["deps"]}
    makers = {out: job for job in jobs for out in job.outs}

    def resolved(path: str) -> set[str]:
        if RESULTS.fullmatch(path):
            return {TABLES}
        file = within(path, set(owners))
        if file in owners or path not in makers:
            return {within(file, all_deps)} - ONLY_IN_SNAKEMAKE
        return set().union(*map(resolved, makers[path].deps))

    by_stage: dict[str, dict[str, set[str]]] = {}
    for job in jobs:
        outs = {within(out, set(owners)) for out in job.outs}
        for stage in {owners[out] for out in outs if out in owners}:
            files = by_stage.setdefault(stage, {"outs": set(), "deps": set()})
            files["outs"] |= outs
            files["deps"] |= set().union(*map(resolved, job.deps)) - stages[stage]["outs"]
    return by_stage


def cases() -> Iterator[dict]:
    """Yield changes of the tiny project whose graphs have, together, every dependency."""
    distilled = {"distill": {"weight": 0.5}}
    yield {"methods__tucker__finetune": distilled}
    norm = {"first_conv": "tucker1", "linear": "svd", "norm": "activation"}
    yield {
        "methods__tucker__factorize": norm,
        "methods__tucker__schedule": {"kind": "iterative"},
        "methods__tucker__finetune": distilled,
    }
    search = SEARCHING | {"finetune": distilled, "quantize": "int8"}
    ranks = search["ranks"] | {"search": {"cost": "latency_ms.local", "trials": 2}}
    yield {"methods": {"tucker": search | {"ranks": ranks}}, "studies": {}}
    # A method without rounds, which exports the original.
    yield {"methods": {"tucker": {"quantize": "int8"}}, "studies": {}}


def test_both_engines_have_the_same_outputs_and_dependencies(project: Project):
    stages = dvc_graph(project)
    assert stages.pop(CODE)["deps"] == {"src/lowrank", "pyproject.toml"}
    deps: dict[str, set[str]] = {}
    for changes in cases():
        project.change_params(**changes)
        jobs = snakemake_jobs(project)
        rules = jobs_by_stage(jobs, stages)
        for name, files in rules.items():
            assert files["outs"] == stages[name]["outs"], name
            assert files["deps"] <= stages[name]["deps"], name
            deps.setdefault(name, set()).update(files["deps"])
        drawn = [job for job in jobs if job.rule == DRAW]
        assert drawn
        assert all(job.deps <= stages["summarize"]["outs"] for job in drawn)
    # Each dependency of DVC is one of Snakemake's in some case. Only the description of a network
    # is a parameter in Snakemake, and in DVC a part of the layer table.
    for name, files in stages.items():
        assert files["deps"] - deps[name] <= {"data/networks/resnet20.json"}, name


def test_inside_a_stage_no_input_counts_as_newer():
    """`consider-ancient` of profiles/dvc covers all inputs of all rules that a stage may run."""
    profile = yaml.safe_load((ROOT / "profiles/dvc/config.yaml").read_text())
    entries = (entry.partition("=") for entry in profile["consider-ancient"])
    covered = {rule: set(names.split(",")) for rule, _, names in entries}
    inputs: dict[str, set[str]] = {}
    for path in sorted((ROOT / "workflow").rglob("*")):
        if path.suffix != ".smk" and path.name != "Snakefile":
            continue
        for block in re.split(r"^(?=rule |use rule )", path.read_text(), flags=re.MULTILINE)[1:]:
            rule = re.match(r"(?:use rule \w+ as |rule )(\w+)", block)[1]
            section = re.search(r"^    input:\n((?:        .*\n|\n)+)", block, re.MULTILINE)
            if section:
                inputs[rule] = set(re.findall(r"^        (\w+)=", section[1], re.MULTILINE))
    # Without names, because no stage runs these rules.
    without_names = {rule for rule, names in inputs.items() if not names}
    assert without_names == {"all", "studies", "study", "unknown_result"}
    assert covered == {rule: names for rule, names in inputs.items() if names}


def test_the_workflow_deletes_the_outputs_of_each_stage_and_dvc_deletes_none(project: Project):
    params = load_params(project.folder / "params.yaml")
    script = (
        "import json, dvc.repo\n"
        "stages = dvc.repo.Repo('.').index.stages\n"
        "print(json.dumps([[s.addressing, [[o.def_path, o.persist] for o in s.outs]]"
        " for s in stages]))"
    )
    listed = project.run(sys.executable, "-c", script).stdout.splitlines()[-1]
    for stage, outs in yaml.safe_load(listed):
        assert all(persist for _, persist in outs), stage
        removed = {str(path) for path in outputs_of(stage, params)}
        if stage.startswith(("dataset", "inspect")):
            assert not removed
        else:
            assert {within(path, removed) for path, _ in outs} <= removed, stage
    assert outputs_of("someone@elses", params) == []


def test_a_dry_run_shows_every_layer_and_round(project: Project):
    project.change_params(methods__tucker__schedule={"kind": "iterative"})
    graph = snakemake_graph(project)
    assert graph["decompose"]["outs"] == {
        f"{BUILD}/tucker/first/factors/conv.safetensors",
        f"{BUILD}/tucker/rounds/2/factors/classifier.safetensors",
    }
    assert f"{BUILD}/tucker/rounds/1/model.safetensors" in graph["select_ranks"]["deps"]
    assert f"{BUILD}/tucker/rounds/2/model.safetensors" in graph["export_onnx"]["deps"]


def test_the_complete_graph_of_vgg16_is_known_before_anything_runs(project: Project):
    shutil.copy(project.folder / "data/checkpoints/resnet20.safetensors",
                project.folder / "data/checkpoints/vgg16.safetensors")  # fmt: skip
    weights = {"dataset": "cifar10", "weights": "data/checkpoints/vgg16.safetensors"}
    project.change_params(
        checkpoint__vgg16=weights,
        methods__tucker__factorize={"first_conv": "tucker1", "conv": "tucker2", "linear": "svd"},
    )
    dry = project.snakemake("--dry-run", "results/vgg16_tucker.json")
    assert job_counts(dry)["decompose"] == 14


def stages_to_run(project: Project) -> set[str]:
    """Return the stages that DVC detects as changed, and all stages that depend on them."""
    script = (
        "import json, networkx, dvc.repo\n"
        "repo = dvc.repo.Repo('.')\n"
        "graph = repo.index.graph\n"
        # Without a search its folder stays empty, so DVC goes no further than this stage.
        "graph.remove_nodes_from([s for s in graph if s.name.startswith('settle@')])\n"
        "changed = [s for s in graph if s.addressing in repo.status()]\n"
        "reached = {s.name for c in changed for s in [c, *networkx.ancestors(graph, c)]}\n"
        "print(json.dumps(sorted(reached)))"
    )
    listed = project.run(sys.executable, "-c", script).stdout.splitlines()[-1]
    return {name.partition("@")[0] for name in yaml.safe_load(listed)}


SUMMARY = "results/summary.csv"
LATER = {"export_onnx", "quantize", "benchmark", "summarize", "overview"}


def slow_case(*values: object) -> object:
    """Mark a case for `make slow`, because each case needs a dry run and a `dvc status`."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        slow_case({"finetune__learning_rate": 0.001}, {"finetune"} | LATER),
        slow_case({"finetune__seed": 7}, {"finetune"} | LATER),
        slow_case({"methods__tucker__finetune": {"steps": 3}}, {"finetune"} | LATER),
        ({"benchmark__local__repeats": 6}, {"benchmark", "summarize", "overview"}),
        slow_case(
            {"quantize__images": 30},
            {"quantize_original", "quantize", "benchmark", "summarize", "overview"},
        ),
        slow_case(
            {"methods__tucker__ranks__weaken": 0.5},
            {"select_ranks", "decompose", "finetune"} | LATER,
        ),
        slow_case({"decompose__threads": 2}, {"decompose", "finetune"} | LATER),
        slow_case({"teacher_outputs__threads": 2}, {"teacher_outputs", "finetune"} | LATER),
        slow_case({"export_onnx__threads": 2}, {"export_original", "quantize_original"} | LATER),
        slow_case(
            {"checkpoint__resnet20__validation": {"from": "test", "images": 20}},
            {"splits", "checkpoint", "teacher_outputs", "select_ranks", "decompose", "finetune"}
            | {"export_original", "quantize_original"}
            | LATER,
        ),
        slow_case({"pretrain__resnet20__epochs": 3}, set()),
    ],
)
def test_a_changed_parameter_reruns_the_same_jobs_in_both_engines(
    recorded: Project, change: dict, expected: set[str]
):
    recorded.change_params(**change)
    assert set(job_counts(recorded.snakemake("--dry-run", SUMMARY))) == expected
    # Some stages depend on complete entries of `methods` and `checkpoint`, because DVC does not
    # accept missing sections. So these stages run after any change of the entries.
    coarser = {"methods": {"select_ranks", "decompose"}, "checkpoint": {"inspect"}}
    sections = {place.partition("__")[0] for place in change}
    additional = set().union(*(coarser.get(section, set()) for section in sections))
    assert stages_to_run(recorded) == expected | additional


def test_inside_a_stage_snakemake_ignores_times_and_parameters(built: Project):
    # DVC has already decided. Without the profile, Snakemake would rerun jobs of other stages.
    shutil.rmtree(built.folder / ".snakemake")
    folders = ["results", "build", "data"]
    for path in (p for top in folders for p in sorted((built.folder / top).rglob("*"))):
        if path.is_file():
            subprocess.run(["touch", str(path)], check=True)
    built.change_params(finetune__seed=9)
    profile = ("--workflow-profile", "profiles/dvc", "--dry-run", RESULT)
    assert "Nothing to be done" in built.run("snakemake", *profile).stdout
