"""What the graph answers if files are on storage."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from lowrank.config.reading import load_params
from lowrank.errors import UserError
from lowrank.graph.pipeline import Graph
from lowrank.graph.storage import copies_of, require_same_code, storage_of, updated

pytest.importorskip("snakemake")

ROOT = Path(__file__).parents[2]
JOB = SimpleNamespace(model="vgg16", dataset="cifar10")


def workflow(provider: str | None, prefix: str = "s3://study/tiny") -> SimpleNamespace:
    """Return the parts of Snakemake's workflow object that say where files are."""
    settings = SimpleNamespace(default_storage_provider=provider, default_storage_prefix=prefix)
    modifier = SimpleNamespace(modify=lambda path: f".snakemake/storage/s3/study/tiny/{path}")
    return SimpleNamespace(
        storage_settings=settings, modifier=SimpleNamespace(path_modifier=modifier)
    )


@pytest.fixture
def stored(monkeypatch) -> Graph:
    monkeypatch.chdir(ROOT)
    return Graph(load_params(), stored_at="s3://study/tiny")


def test_the_address_and_the_local_copies():
    assert storage_of(workflow(None)) == ""
    assert storage_of(workflow("fs", "/mnt/study")) == "/mnt/study"
    assert copies_of(workflow("fs")) == ".snakemake/storage/s3/study/tiny/"


def test_storage_is_refused_inside_a_stage_of_dvc(monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "finetune@vgg16-tucker-local")
    assert storage_of(workflow(None)) == ""
    with pytest.raises(UserError, match="--default-storage-provider s3: the stage `finetune@"):
        storage_of(workflow("s3"))


def test_weights_of_the_user_stay_in_this_folder(stored):
    from snakemake.io import is_flagged

    weights = stored.networks.weights(JOB)
    assert weights == "data/checkpoints/vgg16.safetensors"
    assert is_flagged(weights, "local")
    here = Graph(stored.params).networks.weights(JOB)
    assert not is_flagged(here, "local")


def test_results_of_this_folder_are_not_those_on_storage(stored, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("results").mkdir()
    Path("results/vgg16_lowrank.json").write_text("{}")
    assert list(Graph(stored.params).report.compared) == ["vgg16:lowrank"]
    assert stored.report.compared == {}
    assert stored.first_run() == []


def test_the_table_on_storage_is_made_again_by_new_code(stored):
    assert stored.tables.code_of_stored(JOB)
    assert Graph(stored.params).tables.code_of_stored(JOB) == ""


def test_outputs_on_storage_are_made_anew():
    from snakemake.io import is_flagged

    assert is_flagged(updated("models/a", stored_at=""), "update")
    assert updated("models/a", stored_at="s3://study") == "models/a"
    assert not is_flagged(updated("models/a", stored_at="s3://study"), "update")


def test_a_job_with_another_lowrank_in_its_image_is_refused(tmp_path):
    from snakemake.settings.types import SharedFSUsage

    def job(*, elsewhere: bool, shared: frozenset) -> SimpleNamespace:
        settings = SimpleNamespace(shared_fs_usage=shared)
        return SimpleNamespace(remote_exec=elsewhere, storage_settings=settings)

    sources = tmp_path / "src/lowrank"
    require_same_code(job(elsewhere=True, shared=frozenset()), sources)
    shutil.copytree(ROOT / "src/lowrank", sources)
    require_same_code(job(elsewhere=True, shared=frozenset()), sources)
    (sources / "files.py").write_text("# changed")
    with pytest.raises(UserError, match=r"files.py: the lowrank of this job's image differs"):
        require_same_code(job(elsewhere=True, shared=frozenset()), sources)
    require_same_code(job(elsewhere=True, shared=SharedFSUsage.all()), sources)
    require_same_code(job(elsewhere=False, shared=frozenset()), sources)
