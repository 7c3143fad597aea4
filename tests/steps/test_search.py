import json

import pytest
from click.testing import CliRunner

from lowrank.files import read_json, write_json
from lowrank.search import Found
from lowrank.steps.settle import settle

FILES = ("ranks.json", "model.bin")


@pytest.fixture
def run(tmp_path):
    """Settle three trials that lost 2, 0.5 and 0.8 points, at falling cost."""

    def settled(accuracy_drop: float, made=((0.1, 2.0), (0.2, 0.5), (0.14, 0.8))):
        files = []
        for number, (share, drop) in enumerate(made, start=1):
            write_json(tmp_path / f"{number}_found.json", Found(share, drop, 0.1).to_json())
            for name in FILES:
                files.append(tmp_path / f"trial{number}" / name)
                files[-1].parent.mkdir(exist_ok=True)
                files[-1].write_text(f"{name} of trial {number}")
        ranks = {"select": "budget", "target": {"accuracy_drop": accuracy_drop}}
        outputs = [tmp_path / "taken" / name for name in FILES]
        arguments = {
            "settings": json.dumps(ranks),
            "trials": " ".join(str(tmp_path / f"{n}_found.json") for n in (1, 2, 3)),
            "files": " ".join(map(str, files)),
            "outputs": " ".join(map(str, outputs)),
            "report": tmp_path / "search.json",
        }
        return CliRunner().invoke(settle, [f"--{key}={each}" for key, each in arguments.items()])

    return settled


def test_the_files_of_the_best_trial_are_taken(run, tmp_path):
    done = run(1.0)
    assert done.exit_code == 0, done.output
    for name in FILES:
        assert (tmp_path / "taken" / name).read_text() == f"{name} of trial 3"
    report = read_json(tmp_path / "search.json")
    assert (report["taken"], report["share"], report["drop"]) == (3, 0.14, 0.8)
    assert report["cost"] == "latency_ms.local"


def test_no_trial_within_the_target_leaves_nothing(run, tmp_path):
    done = run(0.2)
    assert done.exit_code == 1
    assert "no trial loses at most 0.2 points" in done.stderr
    assert not (tmp_path / "taken").exists()
    assert not (tmp_path / "search.json").exists()
