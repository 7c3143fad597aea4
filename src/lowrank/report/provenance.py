"""What made a result: commit, version, configuration, and the command that makes it again."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lowrank.config.document import parse_document
from lowrank.errors import UserError

PARAMS = "params.yaml"
# What runs themselves write into tracked files.
_WRITTEN = ("results", "dvc.lock")
# Where the profile that Snakemake was started with reaches the jobs that it starts.
_PROFILE = "LOWRANK_PROFILE"
# Profiles that change nothing about a result, or that DVC's stages set by themselves.
_UNREMARKABLE = ("none", "profiles/default", "profiles/dvc")


def commit() -> str | None:
    """Return the commit of this project, with `-dirty` where tracked files differ from it.

    Results that a run has just written do not count. None outside Git, before the first commit, and
    in a copy of the project inside a repository that does not track it: the commit of that
    repository says nothing about these files.
    """
    head = _git("rev-parse", "--verify", "--quiet", "HEAD")
    if not head or not _git("ls-files", "--", PARAMS, "Snakefile"):
        return None
    others = [f":(exclude){name}" for name in _WRITTEN]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *others)
    return f"{head}-dirty" if changed else head


def stamp(target: str, configuration: Mapping[str, Any], saved_as: str) -> dict[str, str | None]:
    """Return what identifies a result, as scalars: `commit`, `version`, `configuration`, `command`.

    Parameters
    ----------
    target
        The file that the command asks Snakemake for.
    configuration
        The sections of params.yaml that decide the result, with all overrides applied.
    saved_as
        Where the configuration is saved as YAML, for overrides that `--config` cannot express.
    """
    return {
        "commit": commit(),
        "version": version("lowrank"),
        "configuration": digest(configuration),
        "command": command(target, configuration, _committed_params(), saved_as),
    }


def origin_of(results: Iterable[Mapping[str, Any]], command: str | None = None) -> dict[str, str]:
    """Return what made the figures of a picture or table, as metadata in the terms of Dublin Core.

    Parameters
    ----------
    results
        What the picture shows. Those of several commits are all named.
    command
        What draws it; by default the command of the only result.
    """
    results = list(results)

    def named(key: str) -> str:
        return ", ".join(dict.fromkeys(str(each[key]) for each in results if each.get(key)))

    versions, commits = named("version"), named("commit")
    found = {
        "Creator": f"lowrank {versions}".strip(),
        "Source": f"commit {commits}" if commits else "",
        "Description": command or named("command"),
    }
    return {key: each for key, each in found.items() if each}


def digest(configuration: Mapping[str, Any]) -> str:
    """Return a short digest that is equal for equal configurations."""
    text = json.dumps(configuration, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def command(
    target: str,
    configuration: Mapping[str, Any],
    reference: Mapping[str, Any] | None,
    saved_as: str,
) -> str:
    """Return the command that builds `target` from the committed params.yaml, overrides included.

    Parameters
    ----------
    target, configuration, saved_as
        As for `stamp`.
    reference
        The params.yaml of the commit. What the configuration changes, whether by `--config`,
        `--configfile`, `dvc exp run -S` or an edit, becomes part of the command. None where there
        is no such file.
    """
    words = ["snakemake", "--cores", "all"]
    if profile := os.environ.get(_PROFILE):
        words += ["--workflow-profile", profile]
    changed, removed = ({}, []) if reference is None else differences(reference, configuration)
    if changed and _fits_on_the_command_line(changed):
        words.append("--config")
        words += [f"{section}={_flow(entries)}" for section, entries in changed.items()]
        words.append("--")
    elif changed:
        words += ["--configfile", saved_as, "--"]
    text = shlex.join([*words, target])
    # Snakemake merges sections, so an entry that was taken out cannot be named on a command line.
    return text + (f"  # without {', '.join(removed)} in {PARAMS}" if removed else "")


def differences(
    reference: Mapping[str, Any], configuration: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the entries that a configuration changes or adds, nested, and those that it lacks.

    Sections that the configuration leaves out altogether do not concern the result, and neither do
    the names under `matrix`, `dataset` and others that it does not mention.
    """
    changed: dict[str, Any] = {}
    removed: list[str] = []
    for section, entries in configuration.items():
        before = reference.get(section)
        if section in NAMED and isinstance(before, Mapping):
            for name, entry in entries.items():
                _compare(before, name, entry, changed.setdefault(section, {}), removed, section)
        else:
            _compare(reference, section, entries, changed, removed, "")
    return {section: entries for section, entries in changed.items() if entries != {}}, removed


# Sections of params.yaml whose entries are names of the user's: a configuration holds some of them.
NAMED = ("matrix", "dataset", "checkpoint", "methods", "benchmark", "pretrain", "studies")


def _compare(
    reference: Mapping[str, Any],
    key: str,
    entry: Any,
    changed: dict[str, Any],
    removed: list[str],
    within: str,
) -> None:
    """Add to `changed` how an entry differs from the reference's, and to `removed` what is gone."""
    place = f"{within}.{key}" if within else key
    before = reference.get(key)
    if not isinstance(entry, Mapping) or not isinstance(before, Mapping):
        if key not in reference or before != entry:
            changed[key] = entry
        return
    deeper: dict[str, Any] = {}
    for name, value in entry.items():
        _compare(before, name, value, deeper, removed, place)
    removed += [f"{place}.{name}" for name in before if name not in entry]
    if deeper:
        changed[key] = deeper


def _fits_on_the_command_line(changed: Mapping[str, Any]) -> bool:
    """Whether Snakemake's `--config` hands these entries over as they are.

    It reads nested values as text. Numbers are understood all the same, but null is not, nor are
    arguments of the user's own code, whose types nobody knows.
    """

    def plain(value: Any) -> bool:
        if isinstance(value, Mapping):
            return "arguments" not in value and all(map(plain, value.values()))
        if isinstance(value, list | tuple):
            return all(map(plain, value))
        return value is not None

    return all(isinstance(entries, Mapping) for entries in changed.values()) and plain(changed)


def _flow(entries: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(
        json.loads(json.dumps(entries)), default_flow_style=True, sort_keys=False, width=10**6
    )
    return text.strip()


def _committed_params() -> dict[str, Any] | None:
    """Return the params.yaml of the commit, or where there is none the file in this folder."""
    text = _git("show", f"HEAD:./{PARAMS}") if commit() else ""
    if not text and Path(PARAMS).is_file():
        text = Path(PARAMS).read_text()
    try:
        return dict(parse_document(text).entries) if text else None
    except UserError:  # Committed by an earlier version, which took it.
        return yaml.safe_load(text)


def remember_profile(arguments: Sequence[str]) -> None:
    """Let jobs know the profile that Snakemake was started with, given its command line.

    Jobs are processes with command lines of their own, so the first process decides.
    """
    if _PROFILE in os.environ:
        return
    profile = os.environ.get("SNAKEMAKE_PROFILE", "")
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, _, value = word.partition("=")
        if option in ("--profile", "--workflow-profile"):
            profile = value or following
    os.environ[_PROFILE] = "" if profile.rstrip("/") in _UNREMARKABLE else profile


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
