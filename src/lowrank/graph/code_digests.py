"""Compute digests of source code, so that both engines detect that the code of a step has changed.

A step's digest covers its module and everything that it imports inside `lowrank`. The sources are
read, not imported. Comments, docstrings and layout do not count. The code of a user's own network
is covered in the same way, within the project folder.

The code of extensions from installed packages counts for the steps that look them up. Reading the
sources does not find modules imported by a computed name, and data files that a module reads. Other
packages count by their version, and only if a `factory` names one.
"""

import functools
import hashlib
import importlib.metadata
import importlib.util
from collections.abc import Iterable, Mapping
from pathlib import Path

import lowrank
from lowrank.files import write_json
from lowrank.graph.source_files import read_source
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
# Exceptions: how the source of a network is interpreted, and which kinds of device exist, changes
# what a step does.
NOT_LEFT_OUT = frozenset({"lowrank.config.network_source", "lowrank.config.device_kinds"})


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
    return _short("\n".join(map(_digest, files)))


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
        for group in {text for path in files for text in read_source(path).texts}
        for plug_in in _plug_ins(group)
    )
    return _short("\n".join([version, *map(_digest, files), *plug_ins]))


def _digest(path: Path) -> str:
    return read_source(path).digest


@functools.cache
def _plug_ins(group: str) -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=group))


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
    sources = (_digest(path) for path in files if path.suffix == ".py")
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


@functools.cache
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
    source = read_source(path)
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    names = [
        module if not level else ".".join(filter(None, (_parent(package, level), module)))
        for level, module in source.imports
    ]
    programs = (module for text in source.texts for module in _programs(text))
    return tuple(filter(None, (*names, *programs)))


def _parent(package: str, level: int) -> str:
    """Return the package that the dots of a relative import name."""
    parts = package.split(".") if package else []
    return ".".join(parts[: len(parts) - (level - 1)])


def _programs(text: str) -> Iterable[str]:
    """Return the modules of lowrank that a string names, such as `lowrank.devices.remote`.

    Such programs are started by name in another process. The constant part of a computed name such
    as f"lowrank.devices.{program}" stands for every module of that package.
    """
    if not text.endswith("."):
        return [text]
    folder = PACKAGE.joinpath(*text.split(".")[1:])
    return [f"{text}{path.stem}" for path in folder.glob("*.py")]


def _version_of(module: str) -> str:
    top = module.partition(".")[0]
    distributions = importlib.metadata.packages_distributions().get(top, [])
    return " ".join(f"{name} {importlib.metadata.version(name)}" for name in sorted(distributions))


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
