"""The steps of a search: its trials, the best one, and the copy of its files."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lowrank.files import read_json, write_json
from lowrank.ranks.bisection import Found
from lowrank.steps.next_trial import next_trial
from lowrank.steps.settle import settle
from lowrank.steps.take_trial import take_trial


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the step on three trials, which lose 2, 0.5 and 0.8 points."""

    def invoke(accuracy_drop: float, trials=((0.1, 2.0), (0.2, 0.5), (0.14, 0.8)), control=None):
        for number, (share, drop) in enumerate(trials, start=1):
            write_json(tmp_path / f"{number}_loss.json", Found(share, drop, 0.1).to_json())
        ranks = {"select": "budget", "target": {"accuracy_drop": accuracy_drop}}
        arguments = {
            "settings": json.dumps(ranks),
            "trials": " ".join(str(tmp_path / f"{n}_loss.json") for n in (1, 2, 3)),
            "report": tmp_path / "chosen.json",
        }
        if control is not None:
            arguments["control"] = tmp_path / "control.json"
            write_json(arguments["control"], Found(1.0, control, 0.1).to_json())
        return CliRunner().invoke(settle, [f"--{key}={value}" for key, value in arguments.items()])

    return invoke


def test_the_cheapest_trial_within_the_target_is_chosen(run, tmp_path):
    done = run(1.0)
    assert done.exit_code == 0, done.output
    report = read_json(tmp_path / "chosen.json")
    assert (report["taken"], report["share"], report["drop"]) == (3, 0.14, 0.8)
    assert report["cost"] == "latency_ms.local"


def test_nothing_is_written_if_no_trial_meets_the_target(run, tmp_path):
    done = run(0.2)
    assert done.exit_code == 1
    assert "no trial loses at most 0.2 points" in done.stderr
    assert not (tmp_path / "chosen.json").exists()


def test_the_original_in_int8_is_a_candidate(run, tmp_path):
    done = run(1.0, control=0.3)
    assert done.exit_code == 0, done.output
    assert "int8 of the original loses 0.30 +- 0.10 points" in done.stderr
    report = read_json(tmp_path / "chosen.json")
    assert (report["taken"], report["within"]) == (3, True)
    assert report["control"] == {"drop": 0.3, "standard_error": 0.1, "within": True}


def test_it_is_not_an_error_if_only_the_original_in_int8_meets_the_target(run, tmp_path):
    done = run(0.4, control=0.2)
    assert done.exit_code == 0, done.output
    report = read_json(tmp_path / "chosen.json")
    # The trial with the smallest loss is chosen as well.
    assert (report["taken"], report["within"]) == (2, False)
    assert report["control"]["within"]


def test_the_error_names_both_losses_if_neither_meets_the_target(run, tmp_path):
    done = run(0.4, control=0.5)
    assert done.exit_code == 1
    assert "neither does the original in int8 (0.50 +- 0.10)" in done.stderr
    assert not (tmp_path / "chosen.json").exists()


def test_the_files_of_the_chosen_trial_are_copied(tmp_path):
    write_json(tmp_path / "chosen.json", {"taken": 2})
    names = ("model.safetensors", "metrics.json")
    candidates = [tmp_path / f"{number}/{name}" for number in (1, 2, 3) for name in names]
    for path in candidates:
        path.parent.mkdir(exist_ok=True)
        path.write_text(str(path))
    outputs = [tmp_path / "method" / name for name in names]
    arguments = {"candidates": " ".join(map(str, candidates)), "files": " ".join(map(str, outputs))}
    arguments["report"] = tmp_path / "chosen.json"
    done = CliRunner().invoke(take_trial, [f"--{key}={value}" for key, value in arguments.items()])
    assert done.exit_code == 0, done.output
    assert [path.read_text() for path in outputs] == [str(tmp_path / f"2/{name}") for name in names]


@pytest.mark.parametrize(
    ("search", "expected"),
    [({}, "the search is between 0."), ({"between": [0.25, 0.81]}, "trial 1 of 3: 0.4500 of macs")],
)
def test_the_range_of_a_search_is_that_of_the_network_or_of_the_settings(
    tmp_path, search, expected
):
    table = Path(__file__).parents[2] / "data/networks/resnet20.json"
    layers = {layer["name"]: "tucker2" for layer in read_json(table)["layers"][1:-1]}
    settings = {
        "select": "budget",
        "target": {"accuracy_drop": 1},
        "search": {"cost": "macs", **search},
    }
    arguments = {
        "settings": json.dumps(settings),
        "table": table,
        "layers": json.dumps(layers),
        "trials": "",
        "latencies": "",
        "output": tmp_path / "share.json",
    }
    done = CliRunner().invoke(next_trial, [f"--{key}={value}" for key, value in arguments.items()])
    assert done.exit_code == 0, done.output
    assert expected in done.stderr
    assert 0 < read_json(tmp_path / "share.json")["share"] < 1
