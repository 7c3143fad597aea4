"""`lowrank clean` in a real Git repository that also contains files of the user."""

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from lowrank.cli import main

ROOT = Path(__file__).parents[2]

OUTPUTS = (
    "build/vgg16/original/model.safetensors",
    "build/vgg16/tucker/rounds/1/model.safetensors",
    "build/resume/vgg16/tucker/1.pt",
    "build/first_run",
    "logs/checkpoint/vgg16.log",
    "models/vgg16_tucker/vgg16_tucker.onnx",
    "models/vgg16_tucker/vgg16_tucker.md",
    "models/vgg16_tucker/.gitignore",
    "results/vgg16_tucker_new.json",
    "results/plots/resnet20_cpsvd/layers.json",
    "results/pictures/summary.html",
    "results/studies/schedules.svg",
)
OWN = (
    "models/__init__.py",
    "models/mine.py",
    "models/resnet20_tucker/__init__.py",
    "models/vgg16_cpsvd/README.md",
    "models/notes/vgg16.onnx",
    "build/thesis.tex",
    "logs/diary.txt",
    "results/letter.json",
    "results/vgg16_tucker.json",
    "data/weights/mine.pth",
    "data/cifar-10-python.tar.gz",
    "data/fashion-mnist/t10k-labels-idx1-ubyte.gz",
    "data/datasets/cifar10/dataset.json",
)
TRACKED = ("results/vgg16_tucker.json", "models/__init__.py")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / ".gitignore", tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    for name in (*OUTPUTS, *OWN):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("*\n" if path.name == ".gitignore" else name)
    git("init", "--quiet")
    git("add", *TRACKED)
    return tmp_path


def git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def clean():
    return CliRunner().invoke(main, ["clean"])


def files(folder: Path) -> set[str]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    kept = (".gitignore", "params.yaml")
    return {str(path) for path in paths if path.parts[0] != ".git" and str(path) not in kept}


def test_only_outputs_of_runs_are_removed(folder):
    removed = set(OUTPUTS) - {"results/vgg16_tucker_new.json"}
    done = clean()
    assert done.exit_code == 0, done.output
    assert files(folder) == (set(OUTPUTS) - removed) | set(OWN)
    assert "['thesis.tex']" in done.output
    assert not (folder / "build/vgg16").exists()
    assert not (folder / "models/vgg16_tucker").exists()


def test_results_that_git_does_not_track_are_removed(folder):
    git("rm", "--cached", "--quiet", "results/vgg16_tucker.json")
    clean()
    assert not (folder / "results/vgg16_tucker.json").exists()


def test_links_are_not_followed(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "precious.onnx").write_text("mine")
    shutil.rmtree(folder / "build/vgg16")
    (folder / "build/vgg16").symlink_to(elsewhere)
    (folder / "models/resnet20_cpsvd").symlink_to(elsewhere)
    assert clean().exit_code == 0
    assert (elsewhere / "precious.onnx").read_text() == "mine"


def test_nothing_is_removed_if_git_fails(folder):
    (folder / ".git/index").write_bytes(b"damaged")
    done = clean()
    assert done.exit_code == 1
    assert "Nothing was removed" in done.output
    assert files(folder) == {*OUTPUTS, *OWN}


def test_make_clean_only_runs_this_command():
    lines = (ROOT / "Makefile").read_text().split("\nclean:")[1].splitlines()[1:2]
    assert lines == ["\tlowrank clean"]


def test_git_lists_the_files_of_a_package_called_models(folder):
    assert {"models/mine.py", "models/resnet20_tucker/__init__.py"} <= set(untracked())
    (folder / "models/vgg16_tucker/.gitignore").write_text("*\n")
    assert not any(name.startswith("models/vgg16_tucker") for name in untracked())


def untracked() -> list[str]:
    return git("ls-files", "--others", "--exclude-standard").splitlines()


@pytest.mark.seconds
def test_own_weights_can_be_versioned(folder):
    programs = Path(shutil.which("dvc"))
    for command in (["init", "--quiet"], ["add", "--quiet", "data/weights/mine.pth"]):
        done = subprocess.run([programs, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    listed = untracked()
    assert "data/weights/mine.pth.dvc" in listed
    assert "data/weights/mine.pth" not in listed
