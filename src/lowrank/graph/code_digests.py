"""Compute digests of source code, so that both engines detect that the code of a step has changed.

A step's digest covers its module and everything that it imports inside `lowrank`. The sources are
read, not imported. Comments, docstrings and layout do not count. The code of a user's own network
is covered in the same way, within the project folder.

The code of extensions from installed packages counts for the steps that look them up. Reading the
sources does not find modules imported by a computed name, and data files that a module reads. Other
packages count by their version, and only if a `factory` names one.
"""

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import lowrank
from lowrank.files import write_json
from lowrank.graph.step_names import STEPS

PACKAGE = Path(lowrank.__file__).parent

# Modules that either have no effect on a step, or whose effect is visible in its parameters and
# inputs: the configuration, the graph, the command line and the wording of errors.
LEFT_OUT = frozenset(
    {
        "lowrank",  # The package itself imports the library only on demand.
        "lowrank.cli",
        "lowrank.errors",
        "lowrank.report.provenance",
        "lowrank.steps.common",
        "lowrank.steps.ending",
        "lowrank.steps.options",
        "lowrank.temporary",
    }
)
ROOMS_LEFT_OUT = frozenset({"lowrank.config", "lowrank.graph", "lowrank.settings"})
# Exception: how the source of a network is interpreted changes what a step does.
NOT_LEFT_OUT = frozenset({"lowrank.config.network_source"})


def digest_of_step(step: str) -> str:
    """Return the digest of the code that `lowrank <step>` runs, and of lowrank's version."""
    return _digest_of(f"lowrank.steps.{step}", importlib.metadata.version("lowrank"))


def digest_of_module(module: str, folder: Path = Path()) -> str:
    """Return the digest of a user's module and everything that it imports within `folder`.

    A module outside `folder` counts by the version of its package.
    """
    files = files_of_module(module, folder)
    if not files:
        return _short(f"{module} {_version_of(module)}")
    return _short("\n".join(_significant(path) for path in files))


def write_digests(path: Path, networks: Mapping[str, str]) -> None:
    """Write the digests of every step and of every network's own code, for DVC to compare."""
    digests = {step: digest_of_step(step) for step in sorted(STEPS)}
    write_json(path, digests | {"networks": dict(networks)})


def files_of_step(step: str) -> tuple[Path, ...]:
    """Return the source files that a step's digest covers."""
    return _closure(f"lowrank.steps.{step}", "lowrank", PACKAGE)


def files_of_module(module: str, folder: Path = Path()) -> tuple[Path, ...]:
    """Return the source files in `folder` of a user's module and of everything that it imports."""
    return _closure(module, "", folder.resolve())


@functools.cache
def _digest_of(module: str, version: str) -> str:
    files = _closure(module, "lowrank", PACKAGE)
    if not files:
        raise ValueError(f"{module} is not a module of lowrank")
    plug_ins = sorted(
        _code_of(plug_in)
        for group in {group for path in files for group in _groups(path)}
        for plug_in in importlib.metadata.entry_points(group=group)
    )
    return _short("\n".join([version, *map(_significant, files), *plug_ins]))


@functools.cache
def _groups(path: Path) -> frozenset[str]:
    """Return the texts in a file that may be groups of entry points: `lowrank.factorizations`."""
    constants = (node.value for node in ast.walk(_tree(path)) if isinstance(node, ast.Constant))
    return frozenset(
        text
        for text in constants
        if isinstance(text, str) and re.fullmatch(r"lowrank\.[a-z_]+", text)
    )


def _code_of(plug_in: importlib.metadata.EntryPoint) -> str:
    """Return the version and the source of an extension, and what it imports in its package."""
    version = f"{plug_in.dist.name} {plug_in.dist.version}" if plug_in.dist else ""
    package = plug_in.module.partition(".")[0]
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        spec = None
    files: tuple[Path, ...]
    if spec is None or spec.origin is None:  # Nothing to read; using the extension is an error.
        files = ()
    elif spec.submodule_search_locations:
        files = _closure(plug_in.module, package, Path(spec.submodule_search_locations[0]))
    else:
        files = (Path(spec.origin),)
    sources = (_significant(path) for path in files if path.suffix == ".py")
    return "\n".join([f"{plug_in.name} {plug_in.value} {version}", *sources])


def _closure(module: str, package: str, root: Path) -> tuple[Path, ...]:
    """Return the sorted files of a module and its imports below `root`, the folder of `package`."""
    files: dict[str, Path] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = _file_of(name, package, root)
        if path is None or name in files or (package and is_left_out(name)):
            continue
        files[name] = path
        pending += _imports(path, name)
        # Importing a.b runs a/__init__.py first.
        pending += [parent] if (parent := name.rpartition(".")[0]) else []
    return tuple(sorted(set(files.values())))


def is_left_out(name: str) -> bool:
    """Return whether the digests of steps leave out a module of lowrank."""
    room = ".".join(name.split(".")[:2])
    return name not in NOT_LEFT_OUT and (name in LEFT_OUT or room in ROOMS_LEFT_OUT)


def _file_of(name: str, package: str, root: Path) -> Path | None:
    parts = name.split(".")
    if package:
        if parts[0] != package:
            return None
        parts = parts[1:]
    base = root.joinpath(*parts)
    candidates = [base / "__init__.py"] + ([base.with_name(f"{base.name}.py")] if parts else [])
    return next((path for path in candidates if path.is_file()), None)


@functools.cache
def _imports(path: Path, name: str) -> tuple[str, ...]:
    """Return the names of all modules that a file may import, including imports in functions."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    names: list[str] = []
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute(node, package)
            names += [base, *(f"{base}.{alias.name}".lstrip(".") for alias in node.names)]
        elif isinstance(node, ast.Call):
            names += _by_literal_name(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names += _programs(node.value)
    return tuple(filter(None, names))


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".") if package else []
    kept = parts[: len(parts) - (node.level - 1)]
    return ".".join([*kept, *([node.module] if node.module else [])])


def _by_literal_name(node: ast.Call) -> Iterable[str]:
    """Return the module in `import_module("a.b")`; empty for any other call."""
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    first = node.args[0] if node.args else None
    if name in ("import_module", "__import__") and isinstance(first, ast.Constant):
        return [str(first.value)]
    return []


def _programs(text: str) -> Iterable[str]:
    """Return the modules of lowrank that a string names, such as `lowrank.devices.remote`.

    Such programs are started by name in another process. The constant part of a computed name such
    as f"lowrank.devices.{program}" stands for every module of that package.
    """
    if not re.fullmatch(r"lowrank(\.\w+)+\.?", text):
        return []
    if not text.endswith("."):
        return [text]
    folder = PACKAGE.joinpath(*text.split(".")[1:])
    return [f"{text}{path.stem}" for path in folder.glob("*.py")]


@functools.cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_bytes(), filename=str(path))


@functools.cache
def _significant(path: Path) -> str:
    """Return the source of a file without comments, docstrings and layout.

    The syntax tree is converted back to source, because trees differ more between Python versions.
    """
    tree = _tree(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            constant = first.value if isinstance(first, ast.Expr) else None
            if isinstance(constant, ast.Constant) and isinstance(constant.value, str):
                node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(ast.fix_missing_locations(tree))


def _version_of(module: str) -> str:
    top = module.partition(".")[0]
    distributions = importlib.metadata.packages_distributions().get(top, [])
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(distributions))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
