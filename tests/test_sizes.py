"""The sizes of modules and functions: a longer one is a sign that a name is missing."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src/lowrank"
MODULE_LINES, FUNCTION_LINES = 400, 60

# Modules and functions above the limits, with the reason.
EXCEPTIONS = {
    "api.py compress": "most of its lines describe its arguments",
    "steps/finetune.py finetune": "a third of its lines are the options of the command",
    "steps/summarize.py summarize": "half of its lines are the options of the command",
}


def too_long(folder: Path) -> Iterator[tuple[str, int]]:
    """Yield the place and the lines of each module and function above the limits."""
    for path in sorted(folder.rglob("*.py")):
        place, text = str(path.relative_to(folder)), path.read_text()
        if (lines := len(text.splitlines())) > MODULE_LINES:
            yield place, lines
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = node.end_lineno - node.lineno + 1
                if lines > FUNCTION_LINES:
                    yield f"{place} {node.name}", lines


def test_no_module_or_function_is_too_long():
    found = dict(too_long(SOURCE))
    new = {place: lines for place, lines in found.items() if place not in EXCEPTIONS}
    assert not new, f"{new}: find the missing name, or state a reason in {Path(__file__).name}"
    surplus = EXCEPTIONS.keys() - found.keys()
    assert not surplus, f"{surplus}: short enough now; remove the exceptions"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = 1\n" * 401, {"new.py": 401}),
        ("def f():\n" + "    x = 1\n" * 60, {"new.py f": 61}),
        ("class C:\n    def f(self):\n" + "        x = 1\n" * 60, {"new.py f": 61}),
        ("def f():\n" + "    x = 1\n" * 59, {}),
    ],
)
def test_a_long_module_or_function_is_found(tmp_path, text, expected):
    (tmp_path / "new.py").write_text(text)
    assert dict(too_long(tmp_path)) == expected
