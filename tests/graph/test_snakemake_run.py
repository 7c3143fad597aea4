"""Options that a run refuses, where its steps run, and how it tidies up after a dead run."""

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from lowrank.errors import UserError
from lowrank.graph.snakemake_run import prefix_of, run_steps_in_this_process, tidy_up


def snakemake(prefix: str = "") -> SimpleNamespace:
    """Return the parts of Snakemake's workflow object that determine the paths of files."""
    modifier = SimpleNamespace(replace_prefix=lambda path: prefix + path)
    return SimpleNamespace(modifier=SimpleNamespace(path_modifier=modifier))


def test_the_prefix_of_a_module_is_that_of_all_files():
    assert prefix_of(snakemake()) == ""
    assert prefix_of(snakemake(prefix="sub/")) == "sub/"


def test_options_that_move_files_apart_are_refused():
    workflow = snakemake()
    for replace in ({"results/": "sub/results/"}, {"build/": "elsewhere/"}):
        (old, new), *_ = replace.items()
        workflow.modifier.path_modifier.replace_prefix = lambda path, old=old, new=new: (
            new + path.removeprefix(old) if path.startswith(old) else path
        )
        with pytest.raises(UserError, match="a module with `replace_prefix:`"):
            prefix_of(workflow)


class ClusterWorkflow(SimpleNamespace):
    """The parts of Snakemake's workflow object that say where jobs run."""

    def __init__(self, *, remote_exec: bool, nodes: int | None) -> None:
        super().__init__(remote_exec=remote_exec, nodes=nodes)
        self.local: set[str] = set()
        self.resources: dict[str, int] = {}

    def localrules(self, *names: str) -> None:
        self.local |= set(names)

    def register_resource(self, name: str, value: int) -> None:
        self.resources[name] = value


RULES = ("select_ranks", "finetune", "pretrain", "export_onnx")


@pytest.mark.parametrize(
    "where", [{"remote_exec": False, "nodes": 100}, {"remote_exec": True, "nodes": None}]
)
def test_the_login_node_and_other_clusters_run_nothing_else_in_their_process(where, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "4")
    workflow = ClusterWorkflow(**where)
    run_steps_in_this_process(workflow, RULES)
    assert (workflow.local, workflow.resources) == (set(), {})


@pytest.mark.parametrize(("cores", "resources"), [("4", {"_nodes": 4}), (None, {})])
def test_a_job_of_slurm_runs_its_steps_but_no_training(monkeypatch, cores, resources):
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if cores:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", cores)
    workflow = ClusterWorkflow(remote_exec=True, nodes=1)
    run_steps_in_this_process(workflow, RULES)
    assert (workflow.local, workflow.resources) == ({"select_ranks", "export_onnx"}, resources)


def test_the_backup_of_an_existing_folder_is_not_restored(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    backups = tmp_path / ".snakemake/backups"
    for name in ("models/net_tucker/old.onnx", "models/net_gone/net_gone.onnx", "results/a.json"):
        (backups / name).parent.mkdir(parents=True, exist_ok=True)
        (backups / name).write_text("backup")
    delivered = Path("models/net_tucker/net_tucker.onnx")
    delivered.parent.mkdir(parents=True)
    delivered.write_text("new")
    messages = []
    tidy_up(messages.append)
    assert not backups.exists()
    # The run died after it had removed files that it no longer delivers.
    assert [path.name for path in delivered.parent.iterdir()] == ["net_tucker.onnx"]
    assert Path("models/net_gone/net_gone.onnx").read_text() == "backup"
    assert Path("results/a.json").read_text() == "backup"
    assert sum("restored from a backup" in message for message in messages) == 2


def test_leftovers_among_the_copies_of_stored_files_are_removed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copies = ".snakemake/storage/s3/study/tiny/"
    place = Path(copies, "build/net")
    place.mkdir(parents=True)
    code = (
        "import os; from pathlib import Path; from lowrank.temporary import temporary_folder\n"
        f"with temporary_folder(Path({str(place)!r})): os._exit(1)"
    )
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(list(place.iterdir())) == 1
    (place / "model.safetensors").write_text("whole")
    tidy_up([].append, "", copies)
    assert [path.name for path in place.iterdir()] == ["model.safetensors"]
