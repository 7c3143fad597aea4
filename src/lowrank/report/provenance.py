"""Identify a result: commit, version, configuration, and the command that reproduces it."""

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

from lowrank.errors import UserError
from lowrank.settings.document import parse_document

PARAMS = "params.yaml"
# Files of which a project has at least one, also a project that uses the workflow as a module.
_OF_PROJECT = (PARAMS, "Snakefile", "workflow/Snakefile", "config/config.yaml")
# Tracked files that runs write.
_WRITTEN = ("results", "dvc.lock")
# Environment variable that passes the profile of the main Snakemake process to its jobs.
_PROFILE = "LOWRANK_PROFILE"
# Profiles that do not affect a result, or that DVC's stages set themselves.
_DEFAULT_PROFILES = ("none", "profiles/default", "profiles/dvc")


def commit() -> str | None:
    """Return the commit of this project, with `-dirty` if tracked files differ from it.

    Results that a run has just written do not count as a difference. Return None outside Git,
    before the first commit, and in a copy of the project inside a repository that does not track
    it, because the commit of that repository does not describe these files.
    """
    head = _git("rev-parse", "--verify", "--quiet", "HEAD")
    if not head or not _git("ls-files", "--", *_OF_PROJECT):
        return None
    excluded = [f":(exclude){name}" for name in _WRITTEN]
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", *excluded)
    return f"{head}-dirty" if changed else head


def stamp(target: str, configuration: Mapping[str, Any], saved_as: str) -> dict[str, str | None]:
    """Return the scalars that identify a result: `commit`, `version`, `configuration`, `command`.

    Parameters
    ----------
    target
        The file that the command requests from Snakemake.
    configuration
        The sections of params.yaml that determine the result, with all overrides applied.
    saved_as
        The path of the configuration as YAML, for overrides that `--config` cannot express.
    """
    return {
        "commit": commit(),
        "version": version("lowrank"),
        "configuration": digest(configuration),
        "command": command(target, configuration, _committed_params(), saved_as),
    }


def origin_of(results: Iterable[Mapping[str, Any]], command: str | None = None) -> dict[str, str]:
    """Return the origin of a picture or table as metadata in the terms of Dublin Core.

    Parameters
    ----------
    results
        The results that the picture or table shows. The metadata name all their commits.
    command
        The command that draws it. By default the command of the only result.
    """
    results = list(results)

    def values_of(key: str) -> str:
        return ", ".join(dict.fromkeys(str(result[key]) for result in results if result.get(key)))

    versions, commits = values_of("version"), values_of("commit")
    metadata = {
        "Creator": f"lowrank {versions}".strip(),
        "Source": f"commit {commits}" if commits else "",
        "Description": command or values_of("command"),
    }
    return {key: value for key, value in metadata.items() if value}


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
    """Return the command that builds `target` from the committed params.yaml, with overrides.

    Parameters
    ----------
    target, configuration, saved_as
        See `stamp`.
    reference
        The params.yaml of the commit, or None if there is none. All differences between it and the
        configuration become part of the command, whether they come from `--config`, `--configfile`,
        `dvc exp run -S` or an edit.
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
    # Snakemake merges sections, so a command line cannot express that an entry was removed.
    return text + (f"  # without {', '.join(removed)} in {PARAMS}" if removed else "")


def differences(
    reference: Mapping[str, Any], configuration: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Return the entries that a configuration changes or adds, nested, and those that it removes.

    Sections that are missing from the configuration do not affect the result. The same is true for
    missing names in the sections of `NAMED`, such as `matrix` and `dataset`.
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


# Sections of params.yaml whose keys are names chosen by the user. A configuration contains only
# some of them.
NAMED = ("matrix", "dataset", "checkpoint", "methods", "benchmark", "pretrain", "studies")


def _compare(
    reference: Mapping[str, Any],
    key: str,
    entry: Any,
    changed: dict[str, Any],
    removed: list[str],
    parent: str,
) -> None:
    """Add the changes of an entry to `changed`, and its missing entries to `removed`."""
    place = f"{parent}.{key}" if parent else key
    before = reference.get(key)
    if not isinstance(entry, Mapping) or not isinstance(before, Mapping):
        if key not in reference or before != entry:
            changed[key] = entry
        return
    nested: dict[str, Any] = {}
    for name, value in entry.items():
        _compare(before, name, value, nested, removed, place)
    removed += [f"{place}.{name}" for name in before if name not in entry]
    if nested:
        changed[key] = nested


def _fits_on_the_command_line(changed: Mapping[str, Any]) -> bool:
    """Return whether Snakemake's `--config` can express these entries without changing them.

    `--config` reads nested values as text. Text is converted to numbers later, but not to null, and
    not in the arguments of the user's own code, whose types are unknown.
    """

    def is_plain(value: Any) -> bool:
        if isinstance(value, Mapping):
            return "arguments" not in value and all(map(is_plain, value.values()))
        if isinstance(value, list | tuple):
            return all(map(is_plain, value))
        return value is not None

    return all(isinstance(entries, Mapping) for entries in changed.values()) and is_plain(changed)


def _flow(entries: Mapping[str, Any]) -> str:
    text = yaml.safe_dump(
        json.loads(json.dumps(entries)), default_flow_style=True, sort_keys=False, width=10**6
    )
    return text.strip()


def _committed_params() -> dict[str, Any] | None:
    """Return the params.yaml of the commit, or the file in this folder if there is no commit."""
    text = _git("show", f"HEAD:./{PARAMS}") if commit() else ""
    if not text and Path(PARAMS).is_file():
        text = Path(PARAMS).read_text()
    try:
        return dict(parse_document(text).entries) if text else None
    except UserError:  # The file was committed with an earlier version that accepted it.
        return yaml.safe_load(text)


def remember_profile(arguments: Sequence[str]) -> None:
    """Store the profile of Snakemake's command line in the environment, for its jobs.

    Jobs are processes with their own command lines, so only the first process sets the profile.
    """
    if _PROFILE in os.environ:
        return
    profile = os.environ.get("SNAKEMAKE_PROFILE", "")
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        option, _, value = word.partition("=")
        if option in ("--profile", "--workflow-profile"):
            profile = value or following
    os.environ[_PROFILE] = "" if profile.rstrip("/") in _DEFAULT_PROFILES else profile


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
