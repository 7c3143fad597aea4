"""`lowrank clean` beside files of the user's, in a real Git repository."""

import shutil
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from lowrank.cli import main

ROOT = Path(__file__).parents[2]

MADE = (
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
    for name in (*MADE, *OWN):
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
    found = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    kept = (".gitignore", "params.yaml")
    return {str(path) for path in found if path.parts[0] != ".git" and str(path) not in kept}


def test_what_runs_made_goes_and_every_other_file_stays(folder):
    made = set(MADE) - {"results/vgg16_tucker_new.json"}
    done = clean()
    assert done.exit_code == 0, done.output
    assert files(folder) == (set(MADE) - made) | set(OWN)
    assert "['thesis.tex']" in done.output
    assert not (folder / "build/vgg16").exists()
    assert not (folder / "models/vgg16_tucker").exists()


def test_results_that_git_does_not_track_go(folder):
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


def test_nothing_goes_where_git_cannot_tell_what_it_tracks(folder):
    (folder / ".git/index").write_bytes(b"damaged")
    done = clean()
    assert done.exit_code == 1
    assert "Nothing was removed" in done.output
    assert files(folder) == {*MADE, *OWN}


def test_make_clean_runs_that_and_nothing_else():
    lines = (ROOT / "Makefile").read_text().split("\nclean:")[1].splitlines()[1:2]
    assert lines == ["\tlowrank clean"]


def test_git_sees_a_package_called_models(folder):
    seen = git("ls-files", "--others", "--exclude-standard").splitlines()
    assert {"models/mine.py", "models/resnet20_tucker/__init__.py"} <= set(seen)
    (folder / "models/vgg16_tucker/.gitignore").write_text("*\n")
    assert not any(name.startswith("models/vgg16_tucker") for name in seen_again())


def seen_again() -> list[str]:
    return git("ls-files", "--others", "--exclude-standard").splitlines()


def test_own_weights_can_be_versioned(folder):
    programs = Path(shutil.which("dvc"))
    for command in (["init", "--quiet"], ["add", "--quiet", "data/weights/mine.pth"]):
        done = subprocess.run([programs, *command], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    seen = seen_again()
    assert "data/weights/mine.pth.dvc" in seen
    assert "data/weights/mine.pth" not in seen
