"""Which parts of params.yaml decide the result of one variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank.config.params import Params
from lowrank.report.provenance import NAMED


def configuration_of(
    document: Mapping[str, Any], params: Params, model: str, method: str
) -> dict[str, Any]:
    """Return what decides the result of `model` by `method`, as a params.yaml of its own.

    Parameters
    ----------
    document
        The configuration with all overrides applied, as the engine read it.
    params
        The same, checked.
    """
    network = params.checkpoint[model]
    asking = params.trial_of(method)
    name = asking[0] if asking else method
    wanted = {
        "dataset": [network.dataset],
        "checkpoint": [model],
        "methods": [name],
        "studies": [
            study for study, settings in params.studies.items() if name in settings.methods(study)
        ],
        "benchmark": list(params.matrix.devices),
        "pretrain": [model] if network.weights.startswith("build/pretrain/") else [],
    }
    chosen: dict[str, Any] = {"matrix": {"devices": list(params.matrix.devices)}}
    for section, entries in document.items():
        if section == "matrix":
            continue
        if section not in NAMED:
            chosen[section] = entries
            continue
        found = {each: entries[each] for each in wanted[section] if each in (entries or {})}
        if found:
            chosen[section] = found
    return chosen
