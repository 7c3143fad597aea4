"""The identification of a result: commit, version, configuration, command."""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from projects import environment
from snakemake.cli import parse_config
from snakemake.utils import update_config

from lowrank.report.provenance import command, commit, digest, origin_of, remember_profile, stamp


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Create a repository with one commit in the current folder; return a function to run Git."""
    monkeypatch.chdir(tmp_path)

    def git(*arguments):
        command = ["git", *arguments]
        return subprocess.run(
            command, check=True, env=environment(), capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "results").mkdir()
    for name in ("params.yaml", "dvc.lock", "results/net.json"):
        (tmp_path / name).write_text("{}")
    git("add", "--all")
    git("commit", "--quiet", "--message", "start")
    return git


def test_the_commit_of_a_clean_folder(repository):
    assert commit() == repository("rev-parse", "HEAD")


def test_files_that_runs_write_do_not_mark_the_commit_as_changed(repository, tmp_path):
    for name in ("dvc.lock", "results/net.json", "untracked"):
        (tmp_path / name).write_text("new")
    assert commit() == repository("rev-parse", "HEAD")


def test_the_commit_of_a_changed_folder_is_marked(repository, tmp_path):
    (tmp_path / "params.yaml").write_text("new")
    assert commit() == repository("rev-parse", "HEAD") + "-dirty"


def test_there_is_no_commit_outside_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() is None


def test_there_is_no_commit_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None


def test_there_is_no_commit_before_the_first_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "params.yaml").write_text("{}")
    subprocess.run(["git", "init", "--quiet"], check=True, env=environment())
    subprocess.run(["git", "add", "--all"], check=True, env=environment())
    assert commit() is None


def test_there_is_no_commit_in_a_copy_inside_a_repository_that_does_not_track_it(
    repository, tmp_path, monkeypatch
):
    unpacked = tmp_path / "lowrank-main"
    unpacked.mkdir()
    for name in ("params.yaml", "Snakefile"):
        (unpacked / name).write_text("{}")
    monkeypatch.chdir(unpacked)
    assert commit() is None
    repository("add", "--all")
    repository("commit", "--quiet", "--message", "tracked now")
    assert commit() == repository("rev-parse", "HEAD")


PARAMS = {
    "matrix": {"models": ["net"], "methods": ["tucker"], "devices": ["local"]},
    "methods": {"tucker": {"finetune": {"steps": 5}, "quantize": "int8"}, "other": {}},
    "finetune": {"steps": 2300, "learning_rate": 0.008, "freeze": {"layers": 0.125}},
    "benchmark": {"local": {"threads": 1}, "board": {}},
}


def configuration_with(**sections):
    """Return the configuration of `net` and `tucker` with some sections replaced."""
    part = {
        "matrix": {"devices": ["local"]},
        "methods": {"tucker": PARAMS["methods"]["tucker"]},
        "finetune": PARAMS["finetune"],
        "benchmark": {"local": {"threads": 1}},
    }
    return part | sections


def command_of(**sections):
    return command(
        "results/net_tucker.json", configuration_with(**sections), PARAMS, "models/x/params.yaml"
    )


def test_without_overrides_the_command_is_plain():
    assert command_of() == "snakemake --cores all results/net_tucker.json"


@pytest.mark.parametrize(
    "sections",
    [
        {"finetune": PARAMS["finetune"] | {"steps": 400}},
        {"finetune": PARAMS["finetune"] | {"freeze": {"layers": 0.5}}},
        {"finetune": PARAMS["finetune"] | {"steps": "400"}},  # `--config` passes text.
        {"methods": {"tucker": {"finetune": {"steps": 5}, "quantize": "int8", "ranks": {"a": 1}}}},
        {"methods": {"tucker": {"finetune": {"steps": 5}, "quantize": "it's: {odd}"}}},
        {"benchmark": {"local": {"threads": [1, 2]}}, "matrix": {"devices": ["local", "board"]}},
    ],
)
def test_the_command_repeats_overrides_as_snakemake_reads_them(sections):
    words = shlex.split(command_of(**sections))
    entries = words[words.index("--config") + 1 : words.index("--")]
    assert words[-1] == "results/net_tucker.json"
    config = yaml.safe_load(yaml.safe_dump(PARAMS))
    update_config(config, parse_config(entries))
    for section, entries in configuration_with(**sections).items():
        for name, entry in entries.items():
            assert as_text(config[section][name]) == as_text(entry)


def as_text(document):
    """Return the document with all scalars as text. Parameters are converted when checked."""
    if isinstance(document, dict):
        return {key: as_text(value) for key, value in document.items()}
    return [as_text(item) for item in document] if isinstance(document, list) else str(document)


@pytest.mark.parametrize(
    "sections",
    [
        {"methods": {"tucker": {"finetune": {"steps": 5}, "quantize": None}}},
        {"checkpoint": {"net": {"arguments": {"eps": 1e-5}}}},
        {"finetune": None},
    ],
)
def test_overrides_that_the_command_line_cannot_express_are_read_from_a_file(sections):
    assert "--configfile models/x/params.yaml -- results" in command_of(**sections)


def test_the_command_names_a_removed_entry():
    text = command_of(finetune={"steps": 2300, "learning_rate": 0.008})
    assert text.endswith("results/net_tucker.json  # without finetune.freeze in params.yaml")
    assert shlex.split(text, comments=True)[-1] == "results/net_tucker.json"


def test_edits_of_params_yaml_are_overrides_of_the_commit(repository, tmp_path):
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS))
    repository("add", "--all")
    repository("commit", "--quiet", "--message", "parameters")
    changed = configuration_with(finetune=PARAMS["finetune"] | {"steps": 3})
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(PARAMS | changed))
    scalars = stamp("results/net_tucker.json", changed, "models/x/params.yaml")
    assert scalars["commit"] == repository("rev-parse", "HEAD") + "-dirty"
    assert "--config 'finetune={steps: 3}' -- results/net_tucker.json" in scalars["command"]
    assert scalars["configuration"] == digest(changed) != digest(configuration_with())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--cores", "2"], "snakemake --cores all x"),
        (
            ["--workflow-profile", "profiles/slurm"],
            "snakemake --cores all --workflow-profile profiles/slurm x",
        ),
        (["--profile=mine"], "snakemake --cores all --workflow-profile mine x"),
        (["--workflow-profile", "profiles/dvc"], "snakemake --cores all x"),
    ],
)
def test_the_profile_is_that_of_the_first_process(monkeypatch, arguments, expected):
    monkeypatch.setenv("LOWRANK_PROFILE", "")
    monkeypatch.delenv("LOWRANK_PROFILE")
    monkeypatch.delenv("SNAKEMAKE_PROFILE", raising=False)
    remember_profile(arguments)
    remember_profile(["--workflow-profile", "of/a/job"])
    assert command("x", {}, PARAMS, "y") == expected


def test_a_result_outside_git_still_names_its_overrides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    Path("params.yaml").write_text(yaml.safe_dump(PARAMS))
    changed = configuration_with(finetune=PARAMS["finetune"] | {"steps": 3})
    scalars = stamp("x", changed, "y")
    assert scalars["commit"] is None
    assert "finetune={steps: 3}" in scalars["command"]


def test_a_picture_of_several_results_names_all_their_commits():
    results = [
        {"version": "1", "commit": "a", "command": "x"},
        {"version": "1", "commit": "b-dirty", "command": "y"},
        {"version": "1", "commit": "a", "command": "z"},
    ]
    assert origin_of(results, "snakemake all") == {
        "Creator": "lowrank 1",
        "Source": "commit a, b-dirty",
        "Description": "snakemake all",
    }
    # A result of an earlier version has no such entries.
    assert origin_of([{}]) == {"Creator": "lowrank"}
