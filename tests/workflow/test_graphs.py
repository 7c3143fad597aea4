"""Both engines have the same graph: the same files, and the same jobs after a change."""

import re
import shutil
import subprocess
import sys

import pytest
import yaml
from projects import BUILD, RESULT, Project, job_counts

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


def snakemake_graph(project: Project, target: str = "all") -> dict[str, dict[str, set[str]]]:
    """Return the outputs and inputs of each rule's jobs, from a forced dry run."""
    dry = project.snakemake("--dry-run", "--forceall", target)
    graph: dict[str, dict[str, set[str]]] = {}
    for rule, block in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", dry, re.MULTILINE):
        # Remove flags, as in `data/datasets/cifar10 (update)`.
        plain = re.sub(r" \((?:update|local)\)", "", block)
        listed = dict(re.findall(r"^    (input|output): (.*)$", plain, re.MULTILINE))
        if rule == "all":
            continue
        files = graph.setdefault(rule, {"outs": set(), "deps": set()})
        files["outs"].update(listed["output"].split(", "))
        files["deps"].update(filter(None, listed.get("input", "").split(", ")))
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


def with_folders_of_dvc(
    graph: dict[str, dict[str, set[str]]], stages: dict[str, dict[str, set[str]]]
) -> dict[str, dict[str, set[str]]]:
    """Return Snakemake's graph with each file inside an output folder of DVC replaced by it.

    The outputs of later rounds are in the folder of `finetune`, so they belong to that stage.
    """
    all_outs = {path for files in stages.values() for path in files["outs"]}
    all_deps = {path for files in stages.values() for path in files["deps"]}
    coarse: dict[str, dict[str, set[str]]] = {}
    for rule, files in graph.items():
        outs = {within(path, all_outs) for path in files["outs"]}
        deps = {TABLES if RESULTS.fullmatch(path) else path for path in files["deps"]}
        deps = {within(path, all_deps) for path in deps} - ONLY_IN_SNAKEMAKE
        for out in outs:
            stage = "finetune" if out.endswith("/rounds") else rule
            coarse.setdefault(stage, {"outs": set(), "deps": set()})["outs"].add(out)
        coarse.setdefault(rule, {"outs": set(), "deps": set()})["deps"].update(deps)
    # Dependencies of later rounds on earlier rounds are inside the stage `finetune`.
    for name in ("select_ranks", "decompose", "finetune"):
        coarse[name]["deps"] = {d for d in coarse[name]["deps"] if not d.endswith("/rounds")}
    return coarse


@pytest.mark.parametrize("schedule", ["one_shot", "iterative"])
def test_both_engines_have_the_same_outputs_and_dependencies(project: Project, schedule: str):
    project.change_params(
        methods__tucker__schedule={"kind": schedule},
        methods__tucker__finetune={"distill": {"weight": 0.5}},
    )
    stages = dvc_graph(project)
    assert stages.pop(CODE)["deps"] == {"src/lowrank", "pyproject.toml"}
    graph = snakemake_graph(project)
    assert graph.pop(DRAW)["deps"] <= graph["summarize"]["outs"]
    rules = with_folders_of_dvc(graph, stages)
    assert rules.keys() == stages.keys()
    for name in rules:
        assert rules[name]["outs"] == stages[name]["outs"], name
        # The stage `finetune` also has the dependencies of the later rounds in its folder.
        assert rules[name]["deps"] <= stages[name]["deps"], name
    if schedule == "iterative":
        deps = rules["finetune"]["deps"] | rules["select_ranks"]["deps"]
        assert stages["finetune"]["deps"] <= deps | rules["decompose"]["deps"]


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


def test_moments_are_made_inside_the_stage_that_needs_them(project: Project):
    section = "methods__tucker__factorize"
    factorize = {"first_conv": "tucker1", "linear": "svd", "norm": "activation"}
    schedule = {"kind": "iterative"}
    project.change_params(**{section: factorize, "methods__tucker__schedule": schedule})
    stages = dvc_graph(project)
    rules = snakemake_graph(project)
    moments = {f"build/moments/resnet20/tucker/{at}.safetensors" for at in ("first", "rounds/2")}
    calibrate = rules.pop("calibrate")
    assert calibrate["outs"] == moments
    assert moments < rules["decompose"]["deps"]
    assert "calibrate" not in stages
    rules["decompose"]["deps"] |= calibrate["deps"]
    rules["decompose"]["deps"] -= moments
    coarse = with_folders_of_dvc(rules, stages)["decompose"]
    assert coarse["deps"] <= stages["decompose"]["deps"]


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
        ({"finetune__learning_rate": 0.001}, {"finetune"} | LATER),
        slow_case({"finetune__seed": 7}, {"finetune"} | LATER),
        slow_case({"methods__tucker__finetune": {"steps": 3}}, {"finetune"} | LATER),
        ({"benchmark__local__repeats": 6}, {"benchmark", "summarize", "overview"}),
        slow_case(
            {"quantize__images": 30},
            {"quantize_original", "quantize", "benchmark", "summarize", "overview"},
        ),
        (
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
