"""The table and the pictures of all variants."""

import csv
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from lowrank.cli import main
from lowrank.files import write_json

pytestmark = pytest.mark.seconds


def result(top1, ms, **energy):
    latency = {"original": {"p50": 4.0}, "compressed": {"p50": ms}, "speedup": 4 / ms}
    return {
        "accuracy": {"original": 92.0, "exported": top1},
        **{
            quantity: {"original": 1000, "compressed": 500, "ratio": 2.0}
            for quantity in ("parameters", "macs", "size_bytes")
        },
        "latency_ms": {"board": latency, "phone": latency},
        "energy_mj": {"board": energy | {"not_measured": "no counter"}, "phone": energy},
        "finetune": {"steps": 7},
    }


@pytest.fixture
def run(tmp_path):
    """Return a function that runs the step on two variants."""

    def invoke(*results):
        names = ["net:tucker", "other:cpsvd"]
        for name, document in zip(names, results, strict=True):
            write_json(tmp_path / f"{name.replace(':', '_')}.json", document)
        outputs = {
            "table": "summary.csv",
            "page": "summary.md",
            "web-page": "summary.html",
            "latency": "pictures/latency.svg",
            "macs": "pictures/macs.svg",
            "energy": "pictures/energy.svg",
        }
        arguments = [f"--{key}={tmp_path / name}" for key, name in outputs.items()]
        arguments += [f"--results={tmp_path}", f"--variants={' '.join(names)}"]
        return CliRunner().invoke(main, ["overview", *arguments])

    return invoke


def texts(path):
    elements = ElementTree.parse(path).getroot().iter()
    return {element.text for element in elements if element.text}


def test_the_table_and_the_pictures(run, tmp_path):
    done = run(result(91.0, 1.0), result(90.0, 2.0))
    assert done.exit_code == 0, done.output
    with (tmp_path / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8
    assert (rows[1]["method"], rows[1]["top1_percent"], rows[1]["p50_ms"]) == (
        "tucker",
        "91.0",
        "1.0",
    )
    assert rows[1]["energy_mj"] == ""
    assert "| net | tucker | float32 | phone |" in (tmp_path / "summary.md").read_text()
    latency, macs = (texts(tmp_path / f"pictures/{name}.svg") for name in ("latency", "macs"))
    assert {"net on board", "net on phone", "other on phone", "tucker", "cpsvd"} <= latency
    # MACs are the same on both devices, so the panels do not name a device.
    assert {"net", "other", "tucker", "cpsvd"} <= macs
    assert "multiply-accumulates for one image, millions" in macs
    energy = texts(tmp_path / "pictures/energy.svg")
    assert {"No device measured energy.", "board: no counter"} <= energy


def test_the_original_in_int8_is_marked(run, tmp_path):
    documents = [result(91.0, 1.0), result(90.0, 2.0)]
    for document in documents:
        latency = {"original": {"p50": 4.0}, "compressed": {"p50": 3.0}, "speedup": 4 / 3}
        document["control"] = {
            "int8": {
                "accuracy": {"exported": 91.9},
                "size_bytes": {"original": 1000, "compressed": 250, "ratio": 4.0},
                "latency_ms": {"board": latency, "phone": {"not_measured": "no int8 kernels"}},
            }
        }
    done = run(*documents)
    assert done.exit_code == 0, done.output
    for name in ("latency", "macs"):
        assert "original, int8" in texts(tmp_path / f"pictures/{name}.svg")
    with (tmp_path / "summary.csv").open() as file:
        control = [row for row in csv.DictReader(file) if row["precision"] == "int8"]
    assert [row["top1_percent"] for row in control] == ["91.9"] * 4


def test_the_picture_of_energy_shows_only_measured_networks(run, tmp_path):
    done = run(result(91.0, 1.0), result(90.0, 2.0, original=8.0, compressed=3.0))
    assert done.exit_code == 0, done.output
    energy = texts(tmp_path / "pictures/energy.svg")
    assert {"other cpsvd, float32", "other original, float32", "3.00", "8.00"} <= energy
    assert "net tucker, float32" not in energy


def test_the_same_results_give_the_same_bytes(run, tmp_path):
    contents = []
    for _ in range(2):
        assert run(result(91.0, 1.0), result(90.0, 2.0)).exit_code == 0
        files = [*tmp_path.glob("summary.*"), *tmp_path.glob("pictures/*")]
        contents.append({path.name: path.read_bytes() for path in files})
    assert contents[0] == contents[1]


def test_a_network_that_was_not_measured_on_every_device(run, tmp_path):
    other = result(90.0, 2.0)
    del other["latency_ms"]["phone"]
    done = run(result(91.0, 1.0), other)
    assert done.exit_code == 0, done.output
    latency = texts(tmp_path / "pictures/latency.svg")
    assert "other on board" in latency
    assert "other on phone" not in latency


def test_a_file_that_is_not_a_result_is_an_error(run, tmp_path):
    broken = result(90.0, 2.0)
    del broken["macs"]
    done = run(result(91.0, 1.0), broken)
    assert done.exit_code == 1
    assert "other_cpsvd.json: not a result of this version of lowrank" in done.output
    assert not (tmp_path / "summary.csv").exists()
