"""DVC with a remote on S3: push from one clone, pull in another."""

from pathlib import Path

import pytest
import s3_server
from projects import Project
from s3_server import BUCKET, Server

pytestmark = pytest.mark.seconds


def test_files_reach_a_clone_over_s3(project: Project, server: Server, tmp_path: Path):
    if reason := s3_server.missing("dvc_s3"):
        pytest.skip(reason)
    folder = project.folder
    (folder / "models/net").mkdir(parents=True)
    (folder / "models/net/net.onnx").write_bytes(b"network" * 1000)
    project.run("dvc", "add", "--quiet", "models/net", "data/datasets/cifar10")
    project.run("dvc", "remote", "add", "--default", "store", f"s3://{BUCKET}/dvc")
    project.run("dvc", "remote", "modify", "store", "endpointurl", server.address)
    project.run("git", "add", "--all", "--force", "models/net.dvc", "data/datasets/cifar10.dvc")
    project.run("git", "commit", "--quiet", "--all", "--message", "files")
    project.run("dvc", "push", "models/net", "data/datasets/cifar10")
    assert server.keys("dvc/files/md5/")

    clone = Project(tmp_path / "clone")
    project.run("git", "clone", "--quiet", str(folder), str(clone.folder))
    clone.run("dvc", "pull", "models/net", "data/datasets/cifar10")
    pulled = clone.folder / "models/net/net.onnx"
    assert pulled.read_bytes() == b"network" * 1000
    # And again, after the cache of the first folder is gone.
    project.run("rm", "-r", ".dvc/cache", "models/net")
    project.run("dvc", "pull", "models/net")
    assert (folder / "models/net/net.onnx").read_bytes() == pulled.read_bytes()
