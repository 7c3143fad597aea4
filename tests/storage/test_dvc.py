"""DVC with a remote on S3: push from one clone, pull in another."""

import shutil
from pathlib import Path

import pytest
import s3_server
from projects import Project
from s3_server import BUCKET, Server

pytestmark = pytest.mark.seconds


def test_files_reach_a_clone_over_s3(project: Project, server: Server, tmp_path: Path):
    if reason := s3_server.missing("dvc_s3"):
        pytest.skip(reason)
    stored = Path("data/datasets/cifar10")
    files = {path.name: path.read_bytes() for path in (project.folder / stored).iterdir()}
    project.run("dvc", "repro", "--quiet", "code")  # a dependency of the dataset
    project.run("dvc", "commit", "--force", "dataset")
    project.run("dvc", "remote", "add", "--default", "store", f"s3://{BUCKET}/dvc")
    project.run("dvc", "remote", "modify", "store", "endpointurl", server.address)
    project.run("git", "add", "--all")
    project.run("git", "commit", "--quiet", "--message", "dataset")
    project.run("dvc", "push", "dataset")
    assert server.keys("dvc/files/md5/")

    clone = Project(tmp_path / "clone")
    project.run("git", "clone", "--quiet", str(project.folder), str(clone.folder))
    assert not (clone.folder / stored).exists()
    clone.run("dvc", "pull", "dataset")
    # The first folder takes its files from the server, too, once its cache is gone.
    shutil.rmtree(project.folder / ".dvc/cache")
    shutil.rmtree(project.folder / stored)
    project.run("dvc", "pull", "dataset")
    for folder in (clone.folder, project.folder):
        assert {path.name: path.read_bytes() for path in (folder / stored).iterdir()} == files
