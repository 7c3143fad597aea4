"""Select the parts of params.yaml that determine the result of one variant."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lowrank.config.params import Params
from lowrank.report.provenance import NAMED


def configuration_of(
    document: Mapping[str, Any], params: Params, model: str, method: str
) -> dict[str, Any]:
    """Return the part of params.yaml that determines the result of `model` and `method`.

    The part is a valid params.yaml.

    Parameters
    ----------
    document
        The configuration with all overrides applied, as the engine read it.
    params
        The same configuration, checked.
    model, method
        The names of the network and of the method of the variant.
    """
    network = params.checkpoint[model]
    trial = params.trial_of(method)
    name = trial[0] if trial else method
    relevant = {
        "dataset": [network.dataset],
        "checkpoint": [model],
        "methods": [name],
        "studies": [
            study for study, settings in params.studies.items() if name in settings.methods(study)
        ],
        "benchmark": list(params.matrix.devices),
        "pretrain": [model] if network.weights.startswith("build/pretrain/") else [],
    }
    configuration: dict[str, Any] = {"matrix": {"devices": list(params.matrix.devices)}}
    for section, entries in document.items():
        if section == "matrix":
            continue
        if section not in NAMED:
            configuration[section] = entries
            continue
        selected = {key: entries[key] for key in relevant[section] if key in (entries or {})}
        if selected:
            configuration[section] = selected
    return configuration
