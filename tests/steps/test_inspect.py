import json
from pathlib import Path

from click.testing import CliRunner

from lowrank.cli import main

COMMITTED = Path(__file__).parents[2] / "data/networks/resnet20.json"


def test_writes_the_layer_table_where_the_graph_looks_for_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["inspect", "resnet20"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "data/networks/resnet20.json").read_bytes() == COMMITTED.read_bytes()
    assert "20 layers, 40.6 M multiply-accumulates" in result.stderr


def test_writes_where_asked(tmp_path):
    path = tmp_path / "table.json"
    assert CliRunner().invoke(main, ["inspect", "vgg16", "--output", str(path)]).exit_code == 0
    assert json.loads(path.read_text())["network"] == "vgg16"


def test_an_unknown_network(tmp_path):
    result = CliRunner().invoke(main, ["inspect", "vgg61", "--output", str(tmp_path / "t.json")])
    assert result.exit_code == 1
    assert "unknown network 'vgg61'. Did you mean 'vgg16'?" in result.stderr
    assert list(tmp_path.iterdir()) == []
