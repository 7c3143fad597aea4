from pathlib import Path

import pytest
from projects import Project, make_project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """A project in which nothing was run."""
    return make_project(tmp_path / "project")


@pytest.fixture(scope="session")
def built_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A project that Snakemake built on one core. Not to be changed: see `built`."""
    built = make_project(tmp_path_factory.mktemp("built") / "project")
    built.snakemake(cores=1)
    return built


@pytest.fixture
def built(built_once: Project, tmp_path: Path) -> Project:
    """A copy of the built project, to be changed."""
    return built_once.copy_to(tmp_path / "project")


@pytest.fixture(scope="session")
def recorded_once(built_once: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """The built project after the handover to DVC, committed. Not to be changed."""
    recorded = built_once.copy_to(tmp_path_factory.mktemp("recorded") / "project")
    recorded.run("dvc", "commit", "--force", "dataset")
    recorded.run("lowrank", "record")
    recorded.run("git", "add", "--all")
    recorded.run("git", "commit", "--quiet", "--message", "built")
    return recorded


@pytest.fixture
def recorded(recorded_once: Project, tmp_path: Path) -> Project:
    """A copy of the recorded project, to be changed."""
    return recorded_once.copy_to(tmp_path / "project")
