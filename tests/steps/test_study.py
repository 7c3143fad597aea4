"""The table and the picture of a study."""

import json
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from lowrank.cli import main
from lowrank.files import read_json, write_json

SETTINGS = {"title": "A study of shapes", "base": {}, "models": ["net", "other"], "x": "variant"}


def result(percent, steps):
    return {
        "accuracy": {
            "original": 93.0,
            "exported": percent,
            "validation": {"decomposed": 50.0, "finetuned": percent + 0.5},
        },
        "macs": {"ratio": 4.0},
        "parameters": {"ratio": 5.0},
        "latency_ms": {"board": {"speedup": 2.5}},
        "rounds": 1,
        "finetune": {"steps": steps, "seconds": 12.3},
    }


def run(folder, settings):
    for model in settings["models"]:
        for index, variant in enumerate(settings["variants"]):
            steps = 100 * index
            write_json(
                folder / f"{model}_shapes_{variant}.json", result(90.25 + index, steps=steps)
            )
    return CliRunner().invoke(
        main,
        [
            *("study", "--study", "shapes", "--settings", json.dumps(settings)),
            *("--results", str(folder)),
            *("--records", str(folder / "studies/shapes.json")),
            *("--table", str(folder / "studies/shapes.md")),
            *("--picture", str(folder / "studies/shapes.svg")),
        ],
    )


def words_of(picture):
    tree = ElementTree.parse(picture)
    return " ".join("".join(text.itertext()) for text in tree.iter() if text.tag.endswith("text"))


@pytest.mark.parametrize(
    ("x", "variants"),
    [("variant", ["cp4", "control"]), ("steps", ["cp4_0", "cp4_100", "control_0"])],
)
def test_every_variant_is_in_the_records_the_table_and_the_picture(tmp_path, x, variants):
    settings = SETTINGS | {"x": x, "variants": {name: {} for name in variants}}
    done = run(tmp_path, settings)
    assert done.exit_code == 0, done.output
    records = read_json(tmp_path / "studies/shapes.json")
    assert [(row["model"], row["variant"]) for row in records] == [
        (model, variant) for model in ("net", "other") for variant in variants
    ]
    assert records[0]["test_percent"] == 90.25
    table = (tmp_path / "studies/shapes.md").read_text()
    assert "| net | " + variants[0] + " | 50.00 | 90.75 | 90.25 | 4.00x | 5.00x | 2.50x |" in table
    words = words_of(tmp_path / "studies/shapes.svg")
    assert "A study of shapes" in words
    for name in {variant.partition("_")[0] for variant in variants}:
        assert name in words


def test_equal_results_give_equal_bytes(tmp_path):
    settings = SETTINGS | {"variants": {"cp4": {}, "control": {}}}
    for name in "ab":
        (tmp_path / name).mkdir()
        assert run(tmp_path / name, settings).exit_code == 0
    for file in ("shapes.json", "shapes.md", "shapes.svg"):
        first, second = (tmp_path / name / "studies" / file for name in "ab")
        assert first.read_bytes() == second.read_bytes()


def test_a_missing_result_is_named(tmp_path):
    settings = SETTINGS | {"variants": {"cp4": {}}}
    assert run(tmp_path, settings).exit_code == 0
    (tmp_path / "other_shapes_cp4.json").unlink()
    for file in (tmp_path / "studies").iterdir():
        file.unlink()
    done = CliRunner().invoke(
        main,
        [
            *("study", "--study", "shapes", "--settings", json.dumps(settings)),
            *("--results", str(tmp_path), "--records", str(tmp_path / "studies/a.json")),
            *("--table", str(tmp_path / "studies/a.md")),
            *("--picture", str(tmp_path / "studies/a.svg")),
        ],
    )
    assert done.exit_code == 1
    assert "other_shapes_cp4.json: no such file" in done.output
    assert list((tmp_path / "studies").iterdir()) == []
