"""The order of the rooms: a module imports only its own room and the rooms above it."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from lowrank.config.methods import MethodSettings
from lowrank.config.params import Params
from lowrank.graph.step_names import STEPS

SOURCE = Path(__file__).parents[1] / "src"
PACKAGE = SOURCE / "lowrank"
# From top to bottom. `devices` is near the top, because it imports no other room: `lowrank` sends
# it to other machines.
ROOMS = (
    *("errors", "temporary", "files", "core", "devices", "tasks", "settings", "factorize"),
    *("ranks", "config", "onnx_networks", "zoo", "surgery", "onnx_files", "data", "evaluation"),
    *("compression", "training", "report", "graph", "api", "testing", "steps", "cli"),
)
# A task imports PyTorch in its methods only; tests/tasks checks that its metric needs none.
WITHOUT_TORCH = {*ROOMS[: ROOMS.index("onnx_networks")], "graph", "report"} - {"tasks"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE) + sorted(
        path for path in PACKAGE.glob("*.py") if path.name != "__init__.py"
    )


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the name of every import, including imports inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "lowrank":
            yield from ((node.lineno, f"lowrank.{name.name}") for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)


def violations(path: Path) -> list[str]:
    """Return a message for each import that the order of the rooms does not allow."""
    room, messages = room_of(path), []
    for line, name in imported(path):
        parts = name.split(".")
        place = f"{path.relative_to(SOURCE)}:{line}: {room} may not import {name}"
        if parts[0] == "torch" and room in WITHOUT_TORCH:
            messages.append(f"{place}: {room} works without PyTorch")
        elif parts[0] == "lowrank" and len(parts) > 1 and parts[1] in ROOMS:
            if ROOMS.index(parts[1]) > ROOMS.index(room):
                messages.append(f"{place}: {parts[1]} is below {room}")
            elif room == "devices" and parts[1] != "devices":
                messages.append(f"{place}: devices is sent to other machines without other rooms")
    return messages


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_rooms_above_its_own(path):
    assert room_of(path) in ROOMS, f"{path}: add its room to the order in {Path(__file__).name}"
    assert not violations(path), "\n".join(violations(path))


def test_an_import_from_below_gives_a_message(tmp_path, monkeypatch):
    path = tmp_path / "src/lowrank/ranks/new.py"
    path.parent.mkdir(parents=True)
    path.write_text("import torch\n\ndef f():\n    from lowrank.steps import study\n")
    monkeypatch.setitem(globals(), "SOURCE", tmp_path / "src")
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path / "src/lowrank")
    assert violations(path) == [
        "lowrank/ranks/new.py:1: ranks may not import torch: ranks works without PyTorch",
        "lowrank/ranks/new.py:4: ranks may not import lowrank.steps: steps is below ranks",
    ]


def test_modules_have_different_names():
    """Modules of several rooms may share a name only if they belong to the same rule or section."""
    mirrored = {*STEPS, *Params.model_fields, *MethodSettings.model_fields}
    mirrored |= {path.stem for path in (SOURCE.parent / "workflow/rules").glob("*.smk")}
    names: dict[str, list[str]] = {}
    for path in modules():
        if path.name != "__init__.py":
            names.setdefault(path.stem, []).append(room_of(path))
    shared = {name for name, rooms in names.items() if len(rooms) > 1}
    assert shared <= mirrored, {name: names[name] for name in shared - mirrored}
