"""Projects at several points of the workflow."""

from pathlib import Path

import pytest
from projects import Project, make_project


@pytest.fixture(scope="session")
def project_once(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Create a project in which nothing has been run. Tests change only `project`, a copy."""
    return make_project(tmp_path_factory.mktemp("new") / "project")


@pytest.fixture
def project(project_once: Project, tmp_path: Path) -> Project:
    """Create a copy of the project in which nothing has been run, which tests may change."""
    return project_once.copy_to(tmp_path / "project")


@pytest.fixture(scope="session")
def built_once(project_once: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Create a project that Snakemake has built on one core. Tests change only `built`, a copy."""
    built = project_once.copy_to(tmp_path_factory.mktemp("built") / "project")
    built.snakemake(cores=1)
    return built


@pytest.fixture
def built(built_once: Project, tmp_path: Path) -> Project:
    """Create a copy of the built project, which tests may change."""
    return built_once.copy_to(tmp_path / "project")


@pytest.fixture(scope="session")
def recorded_once(built_once: Project, tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Create a built project that is recorded in DVC and committed. Tests change only a copy."""
    recorded = built_once.copy_to(tmp_path_factory.mktemp("recorded") / "project")
    recorded.run("dvc", "commit", "--force", "dataset")
    recorded.run("lowrank", "record")
    recorded.run("git", "add", "--all")
    recorded.run("git", "commit", "--quiet", "--message", "built")
    return recorded


@pytest.fixture
def recorded(recorded_once: Project, tmp_path: Path) -> Project:
    """Create a copy of the recorded project, which tests may change."""
    return recorded_once.copy_to(tmp_path / "project")
