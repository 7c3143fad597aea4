"""Read Python source files without importing them: what counts as code, and what they import.

Each start of Snakemake reads all source files of the package, also in each job on a cluster. So the
results are cached in a file in the user's cache folder. Its keys are digests of the contents of
source files.
"""

import ast
import contextlib
import functools
import hashlib
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from lowrank.files import write_text

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


class SourceCache:
    """Sources that earlier processes have read, in one JSON file.

    Parameters
    ----------
    path
        The file. A file that is missing or damaged is an empty cache.
    most
        Number of sources to keep: enough for some versions of the package.
    """

    def __init__(self, path: Path, most: int = 3000) -> None:
        self.path, self.most = path, most
        self._used: dict[str, SourceFile] = {}
        self._has_new = False

    def read(self, path: Path) -> SourceFile:
        """Return what a file of Python source contains. Raises OSError and SyntaxError."""
        content = path.read_bytes()
        key = hashlib.sha256(_version_of_parser() + content).hexdigest()
        source = self._used.get(key) or self._stored.get(key)
        if source is None:
            source, self._has_new = _parse(content, path), True
        self._used[key] = source
        return source

    def save(self) -> None:
        """Write the sources of this process and of earlier ones, if this process has new ones.

        A folder that cannot be written is no error: the next process parses the files again.
        """
        if not self._has_new:
            return
        # The sources of this process come last. The first ones are removed.
        others = {key: source for key, source in self._stored.items() if key not in self._used}
        sources = list((others | self._used).items())[-self.most :]
        document = {
            key: [source.digest, source.imports, sorted(source.texts)] for key, source in sources
        }
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_text(self.path, json.dumps(document))
        self._has_new = False

    @functools.cached_property
    def _stored(self) -> dict[str, SourceFile]:
        try:
            document = json.loads(self.path.read_text())
            return {key: _from_document(*entry) for key, entry in document.items()}
        except (OSError, ValueError, TypeError, AttributeError):
            return {}


def _from_document(digest: str, imports: list[list[Any]], texts: list[str]) -> SourceFile:
    return SourceFile(digest, tuple((level, module) for level, module in imports), frozenset(texts))


SOURCE_CACHE = SourceCache(platformdirs.user_cache_path("lowrank") / "sources.json")


@functools.cache
def read_source(path: Path) -> SourceFile:
    """Return what a file of Python source contains. Raises OSError and SyntaxError."""
    return SOURCE_CACHE.read(path)


@functools.cache
def _version_of_parser() -> bytes:
    """Return a digest of what determines the result of `_parse`: Python and this module."""
    version = f"{sys.version_info[:2]}".encode()
    return hashlib.sha256(version + Path(__file__).read_bytes()).digest()


def _parse(content: bytes, path: Path) -> SourceFile:
    tree = ast.parse(content, filename=str(path))
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
    source = ast.unparse(tree)
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
