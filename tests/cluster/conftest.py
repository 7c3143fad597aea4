"""A Slurm cluster of one node, and the project in which nothing has been run."""

from contextlib import ExitStack
from pathlib import Path

import pytest
import slurm_node
from projects import Project, make_project


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory):
    """Run a Slurm cluster of one node for all tests of this folder."""
    if reason := slurm_node.missing():
        pytest.skip(reason)
    # The path of a socket may have at most 107 characters.
    folder = tmp_path_factory.mktemp("slurm")
    with ExitStack() as stack:
        try:
            running = stack.enter_context(slurm_node.running_node(folder))
        except slurm_node.NotReadyError as error:
            pytest.skip(str(error))
        yield running


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Create a project in which nothing has been run."""
    return make_project(tmp_path / "project")
