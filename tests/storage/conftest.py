"""A server that speaks S3, and a project whose files are on it."""

from pathlib import Path

import pytest
import s3_server
from projects import Project, make_project
from s3_server import ADDRESS, PREFIX, Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    """Run a server with an empty bucket, and set the credentials that S3's clients look for."""
    if reason := s3_server.missing():
        pytest.skip(reason)
    for name, value in s3_server.credentials().items():
        monkeypatch.setenv(name, value)
    with s3_server.running_server() as running:
        yield running


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Create a project in which nothing has been run."""
    return make_project(tmp_path / "project")


@pytest.fixture
def stored(project: Project, server: Server) -> Project:
    """Create a project whose dataset is on the server only."""
    dataset = project.folder / "data/datasets/cifar10"
    server.upload(dataset, f"{PREFIX}/data/datasets/cifar10")
    # With a storage, a dataset of this folder is not used.
    dataset.rename(project.folder.parent / "cifar10")
    return project


@pytest.fixture
def options(server: Server) -> tuple[str, ...]:
    """Return the options with which Snakemake keeps files on the server."""
    return (
        # First, because it takes all words up to the next option.
        *("--storage-s3-endpoint-url", server.address),
        *("--default-storage-provider", "s3"),
        *("--default-storage-prefix", ADDRESS),
    )
