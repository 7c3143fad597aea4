"""The pictures of one variant."""

from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from lowrank.cli import main
from lowrank.files import write_json

LAYERS = [
    {
        "layer": "first",
        "form": "dense",
        "ranks": "",
        "rank_names": "",
        "full_ranks": "",
        "macs_original": 2_000_000,
        "macs_compressed": 2_000_000,
        "macs_ratio": 1.0,
    },
    {
        "layer": "second",
        "form": "tucker2",
        "ranks": "2 x 3",
        "rank_names": "input x output",
        "full_ranks": "8 x 16",
        "macs_original": 8_000_000,
        "macs_compressed": 1_000_000,
        "macs_ratio": 8.0,
    },
]
TIMES = [
    {
        "device": device,
        "layer": layer,
        "original_ms": original,
        "compressed_ms": compressed,
        "pointwise_ms": compressed / 2,
        "speedup": original / compressed if compressed else None,
    }
    for device in ("board", "phone")
    for layer, original, compressed in (("first", 1, 1), ("second", 4, 2), ("rest", 0, 0))
]
RESULT = {"version": "1.2.3", "commit": "0123abc-dirty", "command": "snakemake --config 'a={b: 1}'"}
CURVE = [
    {"round": number, "step": step, "train_percent": 90.0, "validation_percent": validation}
    for number, step, validation in ((1, 10, None), (1, 20, 88.0), (2, 30, None))
]


@pytest.fixture
def draw(tmp_path):
    """Return a function that draws a variant and returns the texts of each picture by its name."""

    def drawn(layers=LAYERS, times=TIMES, curve=CURVE):
        documents = {"result": RESULT, "layers": layers, "times": times, "curve": curve}
        for name, document in documents.items():
            write_json(tmp_path / f"{name}.json", document)
        devices = list(dict.fromkeys(row["device"] for row in times))
        pictures = {
            "ranks-picture": "ranks",
            "times-pictures": " ".join(f"times_{device}" for device in devices),
            "curve-picture": "curve",
        }
        arguments = [f"--{name}={tmp_path / name}.json" for name in documents]
        for option, names in pictures.items():
            arguments.append(
                f"--{option}=" + " ".join(f"{tmp_path / name}.svg" for name in names.split())
            )
        done = CliRunner().invoke(main, ["draw", "--model=net", "--method=tucker", *arguments])
        assert done.exit_code == 0, done.output
        return {
            path.stem: {
                element.text for element in ElementTree.parse(path).getroot().iter() if element.text
            }
            for path in tmp_path.glob("*.svg")
        }

    return drawn


@pytest.mark.seconds
def test_there_is_a_picture_for_each_table_and_device(draw):
    texts = draw()
    assert texts.keys() == {"ranks", "times_board", "times_phone", "curve"}
    assert {"first (dense)", "second (tucker2)", "not replaced"} <= texts["ranks"]
    assert {"input", "output", "largest possible"} <= texts["ranks"]
    assert {"first", "second", "ms of one run", "original / compressed"} <= texts["times_board"]
    # Layers that take no time have no row.
    assert "rest" not in texts["times_board"]
    assert {"validation images", "end of a round"} <= texts["curve"]


def test_every_picture_names_the_origin_of_its_figures(draw):
    for texts in draw().values():
        assert {"commit 0123abc-dirty", "snakemake --config 'a={b: 1}'", "lowrank 1.2.3"} <= texts


def test_a_method_that_leaves_all_layers_dense(draw):
    texts = draw(layers=LAYERS[:1], times=TIMES[:1])
    assert {"first (dense)", "not replaced"} <= texts["ranks"]


def test_the_picture_without_fine_tuning(draw):
    assert "No fine-tuning." in draw(curve=[])["curve"]


def test_one_round_without_validation(draw):
    texts = draw(curve=CURVE[:1])["curve"]
    assert not {"validation images", "end of a round"} & texts


@pytest.mark.seconds
def test_the_same_tables_give_the_same_bytes(draw, tmp_path):
    contents = []
    for _ in range(2):
        draw()
        contents.append({path.name: path.read_bytes() for path in tmp_path.glob("*.svg")})
    assert contents[0] == contents[1]
