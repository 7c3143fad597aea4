"""Read Python source files without importing them: what counts as code, and what they import."""

import ast
import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

# Names of modules of lowrank, and groups of entry points: `lowrank.devices.remote`,
# `lowrank.factorizations`. The constant part of a computed name ends with a dot.
_NAME = re.compile(r"lowrank(\.\w+)+\.?")


@dataclass(frozen=True)
class SourceFile:
    """What the digests need from a file of Python source.

    Parameters
    ----------
    digest
        Digest of the source without comments, docstrings and layout.
    imports
        Imports, including those in functions: the number of leading dots and the module. An
        imported name may also be a module, so `from a import b` gives `a` and `a.b`.
    texts
        Text constants that may name a module of lowrank or a group of entry points.
    """

    digest: str
    imports: tuple[tuple[int, str], ...]
    texts: frozenset[str]


@functools.cache
def read_source(path: Path) -> SourceFile:
    """Read a file of Python source. Raises OSError and SyntaxError."""
    tree = ast.parse(path.read_bytes(), filename=str(path))
    imports: list[tuple[int, str]] = []
    texts = set()
    for node in ast.walk(tree):
        match node:
            case ast.Module() | ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                _remove_docstring(node)
            case ast.Import():
                imports += [(0, alias.name) for alias in node.names]
            case ast.ImportFrom():
                module = node.module or ""
                imports.append((node.level, module))
                imports += [
                    (node.level, f"{module}.{alias.name}".lstrip(".")) for alias in node.names
                ]
            case ast.Call(args=[ast.Constant(value=str(module)), *_]) if _imports_by_name(node):
                imports.append((0, module))
            case ast.Constant(value=str(text)) if _NAME.fullmatch(text):
                texts.add(text)
    # Converted back to source, because syntax trees differ more between versions of Python.
    source = ast.unparse(ast.fix_missing_locations(tree))
    return SourceFile(hashlib.sha256(source.encode()).hexdigest(), tuple(imports), frozenset(texts))


def _remove_docstring(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> None:
    match node.body:
        case [ast.Expr(value=ast.Constant(value=str())), *others]:
            node.body = others or [ast.Pass()]


def _imports_by_name(call: ast.Call) -> bool:
    """Return whether a call is `import_module(...)` or `__import__(...)`."""
    name = getattr(call.func, "attr", None) or getattr(call.func, "id", None)
    return name in ("import_module", "__import__")
