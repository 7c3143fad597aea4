"""Projects at several points of the workflow."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from projects import Project, make_project

Create = Callable[[Path], Project]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Create], Project]:
    """Return a function that creates a project once for all test processes."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent

    def once(name: str, create: Create) -> Project:
        complete, partial = folder / name, folder / f"{name}.partial"
        with FileLock(folder / f"{name}.lock"):
            if not complete.exists():
                create(partial)
                partial.rename(complete)
        return Project(complete)

    return once


@pytest.fixture(scope="session")
def project_once(shared) -> Project:
    """Create a project in which nothing has been run. Tests change only `project`, a copy."""
    return shared("new", make_project)


@pytest.fixture
def project(project_once: Project, tmp_path: Path) -> Project:
    """Create a copy of the project in which nothing has been run, which tests may change."""
    return project_once.copy_to(tmp_path / "project")


@pytest.fixture(scope="session")
def built_once(shared, project_once: Project) -> Project:
    """Create a project that Snakemake has built on one core. Tests change only `built`, a copy."""

    def build(folder: Path) -> Project:
        built = project_once.copy_to(folder)
        built.snakemake(cores=1)
        return built

    return shared("built", build)


@pytest.fixture
def built(built_once: Project, tmp_path: Path) -> Project:
    """Create a copy of the built project, which tests may change."""
    return built_once.copy_to(tmp_path / "project")


@pytest.fixture(scope="session")
def recorded_once(shared, built_once: Project) -> Project:
    """Create a built project that is recorded in DVC and committed. Tests change only a copy."""

    def record(folder: Path) -> Project:
        recorded = built_once.copy_to(folder)
        recorded.run("dvc", "commit", "--force", "dataset")
        recorded.run("lowrank", "record")
        recorded.run("git", "add", "--all")
        recorded.run("git", "commit", "--quiet", "--message", "built")
        return recorded

    return shared("recorded", record)


@pytest.fixture
def recorded(recorded_once: Project, tmp_path: Path) -> Project:
    """Create a copy of the recorded project, which tests may change."""
    return recorded_once.copy_to(tmp_path / "project")
