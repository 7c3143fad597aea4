"""Runs of the workflow: their results, reproducibility, and recovery after interruptions."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import onnx
import pytest
from projects import BUILD, RESULT, Project, environment, job_counts


def test_the_result_has_the_documented_keys(built_once: Project):
    result = json.loads((built_once.folder / RESULT).read_text())
    for key in ("original", "decomposed", "finetuned", "exported"):
        assert 0 <= result["accuracy"][key] <= 100
    for quantity in ("parameters", "macs", "size_bytes"):
        values = result[quantity]
        assert values["ratio"] == pytest.approx(values["original"] / values["compressed"], 1e-3)
    latency = result["latency_ms"]["local"]
    assert latency["original"]["p90"] >= latency["original"]["p50"] > 0
    assert latency["compressed"]["p90"] >= latency["compressed"]["p50"] > 0
    assert latency["speedup"] > 0
    assert result["rounds"] == 1
    assert result["finetune"]["steps"] == 4
    assert 0 <= result["export"]["max_abs_error"] <= 1e-3


def test_sizes_are_those_of_the_onnx_files(built_once: Project):
    result = json.loads((built_once.folder / RESULT).read_text())
    for name, variant in (("original", "original"), ("compressed", "tucker")):
        path = built_once.folder / BUILD / variant / "model.onnx"
        assert result["size_bytes"][name] == path.stat().st_size
        operators = {node.op_type for node in onnx.load(path).graph.node}
        assert "BatchNormalization" not in operators
        assert "Conv" in operators


def test_layer_table_and_curve_are_records_of_scalars(built_once: Project):
    plots = built_once.folder / "results/plots/resnet20_tucker"
    layers = json.loads((plots / "layers.json").read_text())
    assert [layer["layer"] for layer in layers][:2] == ["conv", "blocks.0.conv1"]
    assert {layer["form"] for layer in layers} == {"dense", "tucker1", "svd"}
    assert layers[0]["parameters_compressed"] < layers[0]["parameters_original"]
    times = json.loads((plots / "times.json").read_text())
    assert [row["layer"] for row in times] == [*(row["layer"] for row in layers), "rest"]
    assert sum(row["compressed_ms"] > 0 for row in times) == len(times)
    curve = json.loads((plots / "curve.json").read_text())
    assert [point["step"] for point in curve] == [2, 4]
    for record in [*layers, *times, *curve]:
        assert all(
            value is None or isinstance(value, str | int | float) for value in record.values()
        )


def test_delivered_files_name_their_command_and_commit(built_once: Project):
    folder = built_once.folder / "models/resnet20_tucker"
    names = {path.name for path in folder.iterdir() if path.suffix in {".onnx", ".md"}}
    assert names == {
        *("resnet20_tucker.onnx", "resnet20_tucker.md"),
        *("resnet20_tucker_int8.onnx", "resnet20_tucker_int8.md"),
    }
    commit = built_once.run("git", "rev-parse", "HEAD").stdout.strip()
    report = json.loads((built_once.folder / BUILD / "tucker/int8/report.json").read_text())
    in_int8 = "int8/" + report["devices"]["local"].removesuffix(".onnx")
    for name, measured in (("resnet20_tucker", "model"), ("resnet20_tucker_int8", in_int8)):
        page = (folder / f"{name}.md").read_text()
        assert "snakemake --cores all results/resnet20_tucker.json" in page
        assert f"commit {commit}." in page
        model = onnx.load(folder / f"{name}.onnx")
        facts = {entry.key: entry.value for entry in model.metadata_props}
        assert facts["lowrank.commit"] == commit
        assert json.loads(facts["lowrank.method"])["finetune"]["steps"] == 4
        # The delivered network is the measured network.
        graph = onnx.load(built_once.folder / BUILD / f"tucker/{measured}.onnx").graph
        assert model.graph == graph


def test_both_engines_keep_a_users_file_in_the_delivered_folder(recorded: Project):
    folder = recorded.folder / "models/resnet20_tucker"
    (folder / "notes.txt").write_text("mine")
    delivered = (folder / "resnet20_tucker.onnx").stat().st_mtime_ns
    recorded.snakemake("--forcerun", "summarize", "--", RESULT)
    second = (folder / "resnet20_tucker.onnx").stat().st_mtime_ns
    assert second > delivered
    recorded.run("dvc", "repro", "--force", "--single-item", "summarize@resnet20-tucker")
    assert (folder / "resnet20_tucker.onnx").stat().st_mtime_ns > second
    assert (folder / "notes.txt").read_text() == "mine"


def test_the_report_contains_all_pictures_with_their_settings(built: Project):
    built.run("snakemake", "--report", "report.html")
    page = (built.folder / "report.html").read_text()
    for name in ("accuracy_by_latency", "accuracy_by_macs", "energy"):
        assert f"results/pictures/{name}.svg" in page
    for name in ("ranks", "times_local", "curve"):
        assert f"results/pictures/resnet20_tucker/{name}.svg" in page
    assert "results/pictures/summary.html" in page
    for setting in ("weaken: 0.2", "steps: 4", "sittings: 1"):
        assert setting in page


def test_a_second_run_has_nothing_to_do(built: Project):
    assert "Nothing to be done" in built.snakemake(RESULT)
    assert "Nothing to be done" in built.snakemake()


@pytest.mark.slow
def test_the_table_includes_other_results(built: Project):
    shutil.copy(built.folder / RESULT, built.folder / "results/resnet20_musco.json")
    assert job_counts(built.snakemake("--dry-run")).keys() == {"all", "overview"}
    built.snakemake()
    assert "| resnet20 | musco |" in (built.folder / "results/summary.md").read_text()
    assert "Nothing to be done" in built.snakemake()


def test_a_run_uses_no_more_cores_than_the_machine_has(built: Project):
    output = built.snakemake("--forcerun", "summarize", "--", RESULT, cores=1000)
    machine = int(re.search(r"--cores 1000: this machine has only (\d+) cores", output)[1])
    assert re.search(rf"Provided cores: {machine}\b", output)


def test_results_that_come_from_git_are_built_again(project: Project):
    (project.folder / "results").mkdir()
    (project.folder / RESULT).write_text("{}")
    dry = project.snakemake("--dry-run", RESULT)
    assert "export_onnx" in dry


@pytest.mark.slow
def test_another_folder_and_more_cores_give_the_same_bytes(built_once: Project, project: Project):
    project.snakemake(cores=2)
    expected, actual = built_once.files(), project.files()
    assert actual.keys() == expected.keys()
    assert [name for name in actual if actual[name] != expected[name]] == []


@pytest.mark.slow
def test_each_round_starts_from_the_previous_one(project: Project):
    project.change_params(
        methods__tucker__schedule={"kind": "iterative", "group": 1}, finetune__steps=2
    )
    project.snakemake(f"{BUILD}/tucker/model.onnx")
    rounds = project.folder / BUILD / "tucker/rounds"
    assert sorted(path.name for path in rounds.iterdir()) == ["1", "2"]
    # The second round starts from the network that the first round has trained.
    second = json.loads((rounds / "2/metrics.json").read_text())
    assert set(second["accuracy"]) == {"decomposed", "finetuned"}
    operators = [
        node.name for node in onnx.load(project.folder / BUILD / "tucker/model.onnx").graph.node
    ]
    assert {"conv.0", "conv.1", "classifier.0", "classifier.1"} <= set(operators)


@pytest.mark.parametrize(
    "rule",
    [
        "summarize",
        *(
            pytest.param(rule, marks=pytest.mark.slow)
            for rule in ("checkpoint", "decompose", "finetune", "export_onnx")
        ),
    ],
)
def test_after_kill_9_the_same_command_completes_to_the_same_bytes(
    built_once: Project, built: Project, rule: str
):
    remove_outputs_from(built.folder, rule)
    command = ["snakemake", "--cores", "2", RESULT]
    process = subprocess.Popen(
        command,
        cwd=built.folder,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.startswith((f"rule {rule}:", f"localrule {rule}:")):
            time.sleep(0.5)
            os.killpg(process.pid, signal.SIGKILL)
            break
    process.wait()
    assert process.returncode == -signal.SIGKILL
    built.snakemake()
    expected, actual = built_once.files(), built.files()
    assert actual.keys() == expected.keys()
    assert [name for name in actual if actual[name] != expected[name]] == []


def remove_outputs_from(folder: Path, rule: str) -> None:
    """Delete the outputs of `rule` and of all rules after it."""
    outputs = {
        "checkpoint": [
            f"{BUILD}/original/model.safetensors",
            f"{BUILD}/original/metrics.json",
            f"{BUILD}/original/replaceable.json",
        ],
        "decompose": list(map(str, (folder / BUILD / "tucker/first/factors").iterdir())),
        "finetune": list(map(str, (folder / BUILD / "tucker/rounds/1").iterdir())),
        "export_onnx": [f"{BUILD}/tucker/model.onnx", f"{BUILD}/tucker/export.json"],
        "summarize": [RESULT],
    }
    rules = list(outputs)
    for later_rule in rules[rules.index(rule) :]:
        for name in outputs[later_rule]:
            (folder / name).unlink()


@pytest.mark.slow
def test_training_in_two_processes(built: Project):
    built.change_params(finetune__processes=2, finetune__threads=2)
    output = built.snakemake(f"{BUILD}/tucker/rounds/1/model.safetensors")
    assert "starting 2 processes" in output
    log = (built.folder / "logs/finetune/resnet20/tucker/1.log").read_text()
    assert "1 threads, each of 2 processes" in log
    # The process that started the others, and the first of them, write to the same log.
    assert "starting 2 processes" in log
    assert log.count("fine-tuned: ") == 1
