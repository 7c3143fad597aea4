"""The code that belongs to a step, and the changes that its digest covers."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lowrank
from lowrank.cli import STEPS
from lowrank.graph import code_digests
from lowrank.graph.code_digests import (
    digest_of_module,
    digest_of_step,
    files_of_module,
    files_of_step,
)
from lowrank.graph.source_files import read_source


def names(step: str) -> set[str]:
    return {str(path.relative_to(code_digests.PACKAGE)) for path in files_of_step(step)}


def test_the_code_of_a_step_includes_imports_inside_functions():
    assert {"steps/decompose.py", "factorize/tucker2.py", "files.py"} <= names("decompose")
    assert "training/loop.py" not in names("decompose")
    assert "training/loop.py" in names("finetune")
    assert "factorize/tucker2.py" not in names("dataset")


def test_the_code_of_a_step_includes_programs_that_it_starts_by_name():
    assert {"devices/sitting.py", "devices/peak_memory.py", "devices/remote.py"} <= names(
        "benchmark"
    )


def module_of(path: Path) -> str:
    parts = path.relative_to(code_digests.PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("step", STEPS)
def test_all_modules_that_importing_a_step_loads_are_covered(step: str):
    """Compares with a real import. Imports inside functions are only found from the source."""
    script = (
        f"import sys, lowrank.steps.{step}\n"
        "print(*(m.__file__ for n, m in sys.modules.items() if n.startswith('lowrank.')))"
    )
    listed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    loaded = {Path(path) for path in listed.stdout.split()}
    # Modules that are left out, and what only they import. Package "" leaves out nothing.
    names = {name for name in map(module_of, loaded) if code_digests.is_left_out(name)}
    left_out = {
        path
        for name in names
        for path in code_digests._closure(name, "", code_digests.PACKAGE.parent)
    }
    assert loaded, listed.stderr
    assert loaded <= set(files_of_step(step)) | left_out


def test_an_unknown_step_is_refused():
    with pytest.raises(ValueError, match="is not a module of lowrank"):
        digest_of_step("no_such_step")


@pytest.fixture
def digest_after(tmp_path: Path):
    """Return a function that changes a file of a copied package and returns decompose's digest."""
    shutil.copytree(Path(lowrank.__file__).parent, tmp_path / "lowrank")

    def change(name: str, before: str, after: str) -> str:
        path = tmp_path / "lowrank" / name
        text = path.read_text()
        assert before in text
        path.write_text(text.replace(before, after, 1))
        script = "from lowrank.graph.code_digests import digest_of_step as d; print(d('decompose'))"
        done = subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONPATH": str(tmp_path), "PATH": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout.strip()

    return change


@pytest.mark.seconds
def test_a_change_of_code_changes_the_digest_and_a_change_of_comments_does_not(digest_after):
    before = digest_of_step("decompose")
    assert digest_after("factorize/tucker2.py", '"""', '"""Reworded. ') == before
    assert digest_after("factorize/tucker2.py", "\nimport", "\n# A comment.\n\nimport") == before
    assert digest_after("training/loop.py", "import", "import sys\nimport") == before
    changed = digest_after("factorize/tucker2.py", "\nimport", "\nEPSILON = 1e-9\nimport")
    assert changed != before


def test_the_code_of_a_users_module_includes_its_imports_within_the_folder(tmp_path: Path):
    package = tmp_path / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "blocks.py").write_text("import torch\n\nWIDTH = 3\n")
    (package / "deep.py").write_text("def later():\n    from . import late\n    return late\n")
    (package / "late.py").write_text("X = 1\n")
    (package / "other.py").write_text("Y = 1\n")
    (package / "net.py").write_text("from .blocks import WIDTH\nimport mine.deep\n")
    files = {path.name for path in files_of_module("mine.net", tmp_path)}
    assert files == {"__init__.py", "blocks.py", "deep.py", "late.py", "net.py"}


def test_an_installed_module_of_the_user_counts_by_its_version(tmp_path: Path):
    assert not files_of_module("numpy.linalg", tmp_path)
    assert digest_of_module("numpy.linalg", tmp_path) != digest_of_module("torch", tmp_path)


def clear_caches():
    for function in (*vars(code_digests).values(), read_source):
        if hasattr(function, "cache_clear"):
            function.cache_clear()


@pytest.fixture
def plug_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Return a function that writes a package with extensions, and digests of three steps."""
    package, information = tmp_path / "shapes", tmp_path / "shapes-1.0.dist-info"
    for folder in (package, information):
        folder.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: shapes\nVersion: 1.0\n")
    entry_points = (
        "[lowrank.factorizations]\nround = shapes.circle:ROUND\n"
        "[lowrank.devices]\nboard = shapes.board:BOARD\n"
    )
    (information / "entry_points.txt").write_text(entry_points)
    (package / "__init__.py").touch()
    (package / "unrelated.py").write_text("X = 1\n")
    monkeypatch.syspath_prepend(tmp_path)

    def digests(factorization: str, device: str = "BOARD = 1\n") -> dict[str, str]:
        (package / "circle.py").write_text("import torn_package\n" + factorization)
        (package / "board.py").write_text(device)
        clear_caches()
        return {step: digest_of_step(step) for step in ("decompose", "benchmark", "dataset")}

    yield digests
    clear_caches()


def test_the_code_of_a_plug_in_counts_for_the_steps_that_may_use_it(plug_in):
    """It is read, not imported: a broken plug-in must not stop a run that does not use it."""
    before = plug_in("ROUND = 1\n")
    assert plug_in("ROUND = 1  # a comment\n") == before
    after = plug_in("ROUND = 2\n")
    assert after["decompose"] != before["decompose"]
    assert after["dataset"] == before["dataset"]


def test_the_code_of_a_device_counts_for_the_steps_that_use_devices(plug_in):
    before = plug_in("ROUND = 1\n")
    after = plug_in("ROUND = 1\n", device="BOARD = 2\n")
    assert after["benchmark"] != before["benchmark"]
    assert after["decompose"] == before["decompose"]
    assert after["dataset"] == before["dataset"]
