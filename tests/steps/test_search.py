"""The step that chooses the best trial of a search."""

import json

import pytest
from click.testing import CliRunner

from lowrank.files import read_json, write_json
from lowrank.ranks.bisection import Found
from lowrank.steps.settle import settle

# Output of the step, and the option for the same files of all trials.
FILES = {
    "plan": "plans",
    "state": "states",
    "metrics": "accuracies",
    "curve": "curves",
    "timing": "timings",
}


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the step on three trials, which lose 2, 0.5 and 0.8 points."""

    def invoke(accuracy_drop: float, trials=((0.1, 2.0), (0.2, 0.5), (0.14, 0.8)), control=None):
        files = {option: [] for option in FILES.values()}
        for number, (share, drop) in enumerate(trials, start=1):
            write_json(tmp_path / f"{number}_found.json", Found(share, drop, 0.1).to_json())
            for name, option in FILES.items():
                path = tmp_path / f"trial{number}" / name
                path.parent.mkdir(exist_ok=True)
                path.write_text(f"{name} of trial {number}")
                files[option].append(path)
        ranks = {"select": "budget", "target": {"accuracy_drop": accuracy_drop}}
        arguments = {
            "settings": json.dumps(ranks),
            "trials": " ".join(str(tmp_path / f"{n}_found.json") for n in (1, 2, 3)),
            **{option: " ".join(map(str, paths)) for option, paths in files.items()},
            **{name: tmp_path / "taken" / name for name in FILES},
            "report": tmp_path / "search.json",
        }
        if control is not None:
            arguments["control"] = tmp_path / "control.json"
            write_json(arguments["control"], Found(1.0, control, 0.1).to_json())
        return CliRunner().invoke(settle, [f"--{key}={value}" for key, value in arguments.items()])

    return invoke


def test_the_files_of_the_best_trial_are_copied(run, tmp_path):
    done = run(1.0)
    assert done.exit_code == 0, done.output
    for name in FILES:
        assert (tmp_path / "taken" / name).read_text() == f"{name} of trial 3"
    report = read_json(tmp_path / "search.json")
    assert (report["taken"], report["share"], report["drop"]) == (3, 0.14, 0.8)
    assert report["cost"] == "latency_ms.local"


def test_nothing_is_written_if_no_trial_meets_the_target(run, tmp_path):
    done = run(0.2)
    assert done.exit_code == 1
    assert "no trial loses at most 0.2 points" in done.stderr
    assert not (tmp_path / "taken").exists()
    assert not (tmp_path / "search.json").exists()


def test_the_original_in_int8_is_a_candidate(run, tmp_path):
    done = run(1.0, control=0.3)
    assert done.exit_code == 0, done.output
    assert "int8 of the original loses 0.30 +- 0.10 points" in done.stderr
    report = read_json(tmp_path / "search.json")
    assert (report["taken"], report["within"]) == (3, True)
    assert report["control"] == {"drop": 0.3, "standard_error": 0.1, "within": True}


def test_it_is_not_an_error_if_only_the_original_in_int8_meets_the_target(run, tmp_path):
    done = run(0.4, control=0.2)
    assert done.exit_code == 0, done.output
    report = read_json(tmp_path / "search.json")
    # The trial with the smallest loss is chosen as well.
    assert (report["taken"], report["within"]) == (2, False)
    assert report["control"]["within"]


def test_the_error_names_both_losses_if_neither_meets_the_target(run, tmp_path):
    done = run(0.4, control=0.5)
    assert done.exit_code == 1
    assert "neither does the original in int8 (0.50 +- 0.10)" in done.stderr
    assert not (tmp_path / "search.json").exists()
