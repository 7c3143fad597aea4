"""Which commit made a file."""

import subprocess

import pytest
from projects import environment

from lowrank.provenance import commit


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Runs Git in a repository with one commit, which is the current folder."""
    monkeypatch.chdir(tmp_path)

    def git(*arguments):
        command = ["git", *arguments]
        return subprocess.run(
            command, check=True, env=environment(), capture_output=True, text=True
        ).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "results").mkdir()
    for name in ("params.yaml", "dvc.lock", "results/net.json"):
        (tmp_path / name).write_text("{}")
    git("add", "--all")
    git("commit", "--quiet", "--message", "start")
    return git


def test_a_clean_folder(repository):
    assert commit() == repository("rev-parse", "HEAD")


def test_what_runs_write_does_not_count(repository, tmp_path):
    for name in ("dvc.lock", "results/net.json", "untracked"):
        (tmp_path / name).write_text("new")
    assert commit() == repository("rev-parse", "HEAD")


def test_a_changed_folder_is_marked(repository, tmp_path):
    (tmp_path / "params.yaml").write_text("new")
    assert commit() == repository("rev-parse", "HEAD") + "-dirty"


def test_outside_git(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() is None


def test_without_git(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() is None
