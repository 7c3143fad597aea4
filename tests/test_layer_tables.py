"""A layer table is updated when the code of a user's network changes."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lowrank.config.params import Params
from lowrank.config.reading import load_params
from lowrank.errors import UserError
from lowrank.graph.code_digests import _file_of, _imports
from lowrank.graph.pipeline import Graph
from lowrank.graph.source_files import read_source

ROOT = Path(__file__).parents[1]

NETWORK = """
from torch import nn
from blocks import convolution

def build():
    return nn.Sequential(convolution(3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8 * 8, 2))
"""
BLOCKS = """
from torch import nn

def convolution(size):
    return nn.Conv2d(3, 4, size, padding=1)
"""


def forget() -> None:
    """Clear the caches, as in a new process."""
    for cached in (read_source, _imports, _file_of):
        cached.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("ournet.py").write_text(NETWORK)
    Path("blocks.py").write_text(BLOCKS)
    yield tmp_path
    forget()


@pytest.fixture
def params() -> Params:
    shipped = load_params(ROOT / "params.yaml")
    document = shipped.model_copy(deep=True)
    entry = copy.deepcopy(shipped.checkpoint["resnet20"])
    fields = {"factory": "ournet:build", "input_shape": (3, 8, 8), "network": None}
    document.checkpoint["ournet"] = entry.model_copy(update=fields)
    return document


def table(params: Params) -> dict:
    forget()
    path = Graph(params).tables.table(SimpleNamespace(model="ournet"))
    return json.loads(Path(path).read_text())


@pytest.mark.seconds
def test_the_table_is_updated_after_changes_of_a_factory_and_its_imports(
    folder: Path, params: Params
):
    before = table(params)
    assert before["layers"][0]["dilation"] == [1, 1]
    written = Path("data/networks/ournet.json").stat().st_mtime_ns
    assert table(params) == before
    # A new comment is not a change.
    Path("blocks.py").write_text("# Ours.\n" + BLOCKS)
    assert table(params) == before
    assert Path("data/networks/ournet.json").stat().st_mtime_ns == written
    Path("blocks.py").write_text(BLOCKS.replace("padding=1", "padding=2, dilation=2"))
    after = table(params)
    assert after["layers"][0]["dilation"] == [2, 2]
    assert after["layers"][0]["padding"] == [2, 2]
    Path("ournet.py").write_text(NETWORK.replace("nn.ReLU()", "nn.ReLU(), nn.Conv2d(4, 4, 1)"))
    assert [layer["name"] for layer in table(params)["layers"]] == ["0", "2", "4"]


@pytest.mark.seconds
def test_the_code_of_a_network_is_a_dependency_even_if_its_layers_do_not_change(
    folder: Path, params: Params
):
    # A changed activation does not affect the layers.
    before = table(params)
    Path("ournet.py").write_text(NETWORK.replace("nn.ReLU()", "nn.Tanh()"))
    after = table(params)
    assert after["layers"] == before["layers"]
    assert after["code"] != before["code"]


@pytest.mark.parametrize(("name", "fits"), [("a-b", True), ("größe", True), ("a b", False)])
def test_layer_names_that_cannot_be_file_names_are_refused(
    folder: Path, params: Params, name: str, fits: bool
):
    table = {"network": "ournet", "input_shape": [3, 8, 8], "layers": []}
    shipped = json.loads((ROOT / "data/networks/resnet20.json").read_text())
    layer = shipped["layers"][1] | {"name": name}
    Path("tables").mkdir()
    Path("tables/resnet20.json").write_text(json.dumps(table | {"layers": [layer]}))
    graph = Graph(params, Path("tables"))
    if fits:
        assert list(graph.rounds("resnet20", "spatial_svd")[0]) == [name]
        return
    with pytest.raises(UserError, match=f"its layer '{name}' cannot be factored"):
        graph.rounds("resnet20", "spatial_svd")
