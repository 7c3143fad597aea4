"""What a run refuses, and what it makes of what a dead run left."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from lowrank.errors import UserError
from lowrank.graph.snakemake_run import refuse_moved_files, tidy_up


def snakemake(provider: str | None = None, prefix: str = "") -> SimpleNamespace:
    """The parts of Snakemake's workflow object that say where files go."""
    modifier = SimpleNamespace(replace_prefix=lambda path: prefix + path)
    return SimpleNamespace(
        modifier=SimpleNamespace(path_modifier=modifier),
        storage_settings=SimpleNamespace(default_storage_provider=provider),
    )


def test_files_that_would_go_elsewhere_are_refused():
    refuse_moved_files(snakemake())
    with pytest.raises(UserError, match=r"--default-storage-provider s3: .* a disk that all"):
        refuse_moved_files(snakemake("s3"))
    with pytest.raises(UserError, match="a module with `prefix:`"):
        refuse_moved_files(snakemake(prefix="sub/"))


def test_a_backup_of_a_folder_that_is_there_brings_no_old_file_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backups = tmp_path / ".snakemake/backups"
    for name in ("models/net_tucker/old.onnx", "models/net_gone/net_gone.onnx", "results/a.json"):
        (backups / name).parent.mkdir(parents=True, exist_ok=True)
        (backups / name).write_text("backup")
    delivered = Path("models/net_tucker/net_tucker.onnx")
    delivered.parent.mkdir(parents=True)
    delivered.write_text("new")
    said = []
    tidy_up(said.append)
    assert not backups.exists()
    # The run died after it had removed what it no longer delivers.
    assert [path.name for path in delivered.parent.iterdir()] == ["net_tucker.onnx"]
    assert Path("models/net_gone/net_gone.onnx").read_text() == "backup"
    assert Path("results/a.json").read_text() == "backup"
    assert sum("put back" in line for line in said) == 2
