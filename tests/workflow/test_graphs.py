"""The two engines hold one graph: same files made and needed, same jobs after a change."""

import re
import shutil
import subprocess
import sys

import pytest
import yaml
from projects import BUILD, RESULT, Project, job_counts

from lowrank.config.reading import load_params
from lowrank.graph.dvc_stages import outputs_of

# Made by the first run in a clone so that Snakemake builds results that Git brought.
KNOWN_TO_SNAKEMAKE_ALONE = {"build/first_run"}

# Snakemake's rules have the digests themselves as parameters.
CODE = "code"

# DVC draws the tables by itself.
DRAWN_BY_SNAKEMAKE_ALONE = "draw"

# DVC cannot list the results of the matrix; their tables have a folder of their own and change with
# them.
RESULTS, TABLES = re.compile(r"results/\w+\.json"), "results/plots"


def snakemake_graph(project: Project, target: str = "all") -> dict[str, dict[str, set[str]]]:
    """For each rule the files that its jobs make and need, as a forced dry run prints them."""
    dry = project.snakemake("--dry-run", "--forceall", target)
    graph: dict[str, dict[str, set[str]]] = {}
    for rule, block in re.findall(r"^(?:local)?rule (\w+):\n((?:    .*\n)+)", dry, re.MULTILINE):
        # Without flags: `data/datasets/cifar10 (update)`.
        plain = re.sub(r" \((?:update|local)\)", "", block)
        listed = dict(re.findall(r"^    (input|output): (.*)$", plain, re.MULTILINE))
        if rule == "all":
            continue
        files = graph.setdefault(rule, {"outs": set(), "deps": set()})
        files["outs"].update(listed["output"].split(", "))
        files["deps"].update(filter(None, listed.get("input", "").split(", ")))
    return graph


def dvc_graph(project: Project) -> dict[str, dict[str, set[str]]]:
    """For each stage the files and folders that its instances make and need."""
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
    """The folder of `folders` that holds a file, or the file itself."""
    return next((folder for folder in folders if path.startswith(f"{folder}/")), path)


def at_the_grain_of_dvc(
    graph: dict[str, dict[str, set[str]]], stages: dict[str, dict[str, set[str]]]
) -> dict[str, dict[str, set[str]]]:
    """Snakemake's graph with each file inside a DVC folder replaced by that folder.

    What the rules of the later rounds make lies in the folder of `finetune`, and is its own.
    """
    made = {path for files in stages.values() for path in files["outs"]}
    needed = {path for files in stages.values() for path in files["deps"]}
    coarse: dict[str, dict[str, set[str]]] = {}
    for rule, files in graph.items():
        outs = {within(path, made) for path in files["outs"]}
        deps = {TABLES if RESULTS.fullmatch(path) else path for path in files["deps"]}
        deps = {within(path, needed) for path in deps} - KNOWN_TO_SNAKEMAKE_ALONE
        for out in outs:
            stage = "finetune" if out.endswith("/rounds") else rule
            coarse.setdefault(stage, {"outs": set(), "deps": set()})["outs"].add(out)
        coarse.setdefault(rule, {"outs": set(), "deps": set()})["deps"].update(deps)
    # What a later round takes from an earlier one stays inside the stage `finetune`.
    for name in ("select_ranks", "decompose", "finetune"):
        coarse[name]["deps"] = {d for d in coarse[name]["deps"] if not d.endswith("/rounds")}
    return coarse


@pytest.mark.parametrize("schedule", ["one_shot", "iterative"])
def test_both_engines_make_and_need_the_same_files(project: Project, schedule: str):
    project.change_params(
        methods__tucker__schedule={"kind": schedule},
        methods__tucker__finetune={"distill": {"weight": 0.5}},
    )
    stages = dvc_graph(project)
    assert stages.pop(CODE)["deps"] == {"src/lowrank", "pyproject.toml"}
    graph = snakemake_graph(project)
    assert graph.pop(DRAWN_BY_SNAKEMAKE_ALONE)["deps"] <= graph["summarize"]["outs"]
    rules = at_the_grain_of_dvc(graph, stages)
    assert rules.keys() == stages.keys()
    for name in rules:
        assert rules[name]["outs"] == stages[name]["outs"], name
        # Fine-tuning also needs what the later rounds inside its folder need.
        assert rules[name]["deps"] <= stages[name]["deps"], name
    if schedule == "iterative":
        inside = rules["finetune"]["deps"] | rules["select_ranks"]["deps"]
        assert stages["finetune"]["deps"] <= inside | rules["decompose"]["deps"]


def test_dvc_deletes_nothing_and_the_workflow_what_each_stage_makes(project: Project):
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


def test_moments_are_made_within_the_stage_that_needs_them(project: Project):
    section = "methods__tucker__factorize"
    chosen = {"first_conv": "tucker1", "linear": "svd", "norm": "activation"}
    project.change_params(**{section: chosen, "methods__tucker__schedule": {"kind": "iterative"}})
    stages = dvc_graph(project)
    rules = snakemake_graph(project)
    moments = {f"build/moments/resnet20/tucker/{at}.safetensors" for at in ("first", "rounds/2")}
    calibrate = rules.pop("calibrate")
    assert calibrate["outs"] == moments
    assert moments < rules["decompose"]["deps"]
    assert "calibrate" not in stages
    rules["decompose"]["deps"] |= calibrate["deps"]
    rules["decompose"]["deps"] -= moments
    coarse = at_the_grain_of_dvc(rules, stages)["decompose"]
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


def test_the_whole_of_vgg16_is_known_before_anything_runs(project: Project):
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
    """The stages that DVC finds changed, and all that depend on one."""
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


def rarely(*values: object) -> object:
    """A case for `make slow`: each takes a dry run and a `dvc status`."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"finetune__learning_rate": 0.001}, {"finetune"} | LATER),
        rarely({"finetune__seed": 7}, {"finetune"} | LATER),
        rarely({"methods__tucker__finetune": {"steps": 3}}, {"finetune"} | LATER),
        ({"benchmark__local__repeats": 6}, {"benchmark", "summarize", "overview"}),
        rarely(
            {"quantize__images": 30},
            {"quantize_original", "quantize", "benchmark", "summarize", "overview"},
        ),
        (
            {"methods__tucker__ranks__weaken": 0.5},
            {"select_ranks", "decompose", "finetune"} | LATER,
        ),
        rarely({"decompose__threads": 2}, {"decompose", "finetune"} | LATER),
        rarely({"teacher_outputs__threads": 2}, {"teacher_outputs", "finetune"} | LATER),
        rarely({"export_onnx__threads": 2}, {"export_original", "quantize_original"} | LATER),
        rarely(
            {"checkpoint__resnet20__validation": {"from": "test", "images": 20}},
            {"splits", "checkpoint", "teacher_outputs", "select_ranks", "decompose", "finetune"}
            | {"export_original", "quantize_original"}
            | LATER,
        ),
        rarely({"pretrain__resnet20__epochs": 3}, set()),
    ],
)
def test_a_changed_parameter_reruns_the_same_jobs_in_both(
    recorded: Project, change: dict, expected: set[str]
):
    recorded.change_params(**change)
    assert set(job_counts(recorded.snakemake("--dry-run", SUMMARY))) == expected
    # Methods and networks may leave entries out, which DVC would refuse: it follows all of them.
    coarser = {"methods": {"select_ranks", "decompose"}, "checkpoint": {"inspect"}}
    sections = {place.partition("__")[0] for place in change}
    also = set().union(*(coarser.get(section, set()) for section in sections))
    assert stages_to_run(recorded) == expected | also


def test_inside_a_stage_times_and_parameters_count_for_nothing(built: Project):
    # DVC has decided by then; without the profile Snakemake would rerun what DVC left alone.
    shutil.rmtree(built.folder / ".snakemake")
    made = ["results", "build", "data"]
    for path in (p for top in made for p in sorted((built.folder / top).rglob("*"))):
        if path.is_file():
            subprocess.run(["touch", str(path)], check=True)
    built.change_params(finetune__seed=9)
    profile = ("--workflow-profile", "profiles/dvc", "--dry-run", RESULT)
    assert "Nothing to be done" in built.run("snakemake", *profile).stdout
