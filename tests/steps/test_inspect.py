"""The step that writes layer tables."""

import json
from pathlib import Path

from click.testing import CliRunner

from lowrank.cli import main
from lowrank.core.layers import LayerTable

COMMITTED = Path(__file__).parents[2] / "data/networks/resnet20.json"


def test_the_default_path_is_where_the_graph_reads_the_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["inspect", "resnet20"])
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "data/networks/resnet20.json").read_text())
    assert document["source"] == {"network": "resnet20"}
    assert LayerTable.from_json(document) == LayerTable.from_json(json.loads(COMMITTED.read_text()))
    assert "20 layers, 40.6 M multiply-accumulates" in result.stderr


def test_the_table_is_written_to_the_given_path(tmp_path):
    path = tmp_path / "table.json"
    assert CliRunner().invoke(main, ["inspect", "vgg16", "--output", str(path)]).exit_code == 0
    assert json.loads(path.read_text())["network"] == "vgg16"


def test_an_unknown_network(tmp_path):
    result = CliRunner().invoke(main, ["inspect", "vgg61", "--output", str(tmp_path / "t.json")])
    assert result.exit_code == 1
    assert "unknown network 'vgg61'. Did you mean 'vgg16'?" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_users_own_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = json.dumps({"factory": "mynet:build", "input_shape": [3, 32, 32]})
    result = CliRunner().invoke(main, ["inspect", source, "--name", "mine"])
    assert result.exit_code == 0, result.output
    document = json.loads((tmp_path / "data/networks/mine.json").read_text())
    assert document["network"] == "mine"
    assert document["source"] == json.loads(source)
    assert [layer["name"] for layer in document["layers"]][:2] == ["stem", "block.conv1"]
    assert CliRunner().invoke(main, ["inspect", source]).exit_code == 0
    assert (tmp_path / "data/networks/build.json").is_file()


def test_a_torchvision_network(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = '{"network": "torchvision/squeezenet1_1", "input_shape": [3, 64, 64]}'
    result = CliRunner().invoke(main, ["inspect", source])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "data/networks/squeezenet1_1.json").is_file()


def test_a_factory_that_cannot_be_imported(tmp_path):
    source = '{"factory": "nowhere:build", "input_shape": [3, 8, 8]}'
    result = CliRunner().invoke(main, ["inspect", source, "--output", str(tmp_path / "t.json")])
    assert result.exit_code == 1
    assert "factory 'nowhere:build': there is no module 'nowhere'" in result.stderr
    assert list(tmp_path.iterdir()) == []
