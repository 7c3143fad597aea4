"""`lowrank clean_device`, which removes files from another machine."""

import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from ssh_server import MISSING, running

from lowrank.cli import main
from lowrank.config.device_kinds import create_device

PARAMS = Path(__file__).parents[2] / "params.yaml"


@pytest.fixture
def clean(tmp_path, monkeypatch):
    """Return a function that runs the command in a folder whose params.yaml has some devices."""

    def run(name, devices):
        document = yaml.safe_load(PARAMS.read_text())
        document["benchmark"] |= devices
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(document))
        return CliRunner().invoke(main, ["clean_device", name])

    monkeypatch.chdir(tmp_path)
    return run


@pytest.mark.seconds
@pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
def test_files_that_were_sent_are_removed(clean, tmp_path):
    remote_folder = tmp_path / "there"
    with running(tmp_path) as server:
        board = {"kind": "ssh", "host": "board", "python": sys.executable}
        board |= {"folder": str(remote_folder), "command": server.command}
        create_device("board", board).environment({})
        assert remote_folder.is_dir()
        (remote_folder / "thesis.tex").write_text("years of work")
        result = clean("board", {"board": board})
        second = clean("board", {"board": board})
    assert result.exit_code == 0, result.output
    assert f"board: {remote_folder}/lowrank-device: removed, " in result.output
    assert [path.name for path in remote_folder.iterdir()] == ["thesis.tex"]
    assert "no files of lowrank found" in second.output


def test_a_device_that_is_not_another_machine_is_an_error(clean):
    board = {"kind": "ssh", "host": "board"}
    result = clean("local", {"board": board})
    assert result.exit_code == 1
    assert "unknown device that keeps files 'local'" in result.output
    assert "Known: board." in result.output
