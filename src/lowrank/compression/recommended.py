"""The settings that `lowrank.compress` and `lowrank compress` use if the user gives none."""

from collections.abc import Mapping
from typing import Any

from lowrank.core.metric import OUTPUT_ERROR

# Kim et al. 2016: the same as the method `tucker` of params.yaml.
TUCKER = {
    "first_conv": "tucker1",
    "conv": "tucker2",
    "pointwise_conv": "svd",
    "flattened_linear": "tucker2",
    "linear": "svd",
}

# The recommended method: for each layer, the best of factors and channel removal. Same as the
# method `lowrank` of params.yaml, but `sequential`, because nothing is trained afterwards.
RECOMMENDED: Mapping[str, Any] = {
    "first_conv": "tucker1",
    "conv": "tucker2",
    "pointwise_conv": "svd",
    "linear": "svd",
    "alternatives": ["spatial_svd", "remove_channels", "remove_branch"],
    "sequential": True,
}

# Largest accuracy drop in points, and largest error of the outputs in percent if they are not
# classes.
_DROP, _ERROR = 1.0, 10.0

# Number of samples from which the metric is known.
_SAMPLES = 4


def recommended_ranks(original: Any = None) -> dict[str, Any]:
    """Return the recommended settings of the rank rule: the lowest latency on this machine.

    `original` is a network in memory with samples. They show whether its outputs are classes, which
    decides the unit of the target. By default, they are.
    """
    itself = original.expected_from(original, _SAMPLES) if original else None
    is_error = itself is not None and itself.metric == OUTPUT_ERROR
    return {
        "select": "budget",
        "target": {"accuracy_drop": _ERROR if is_error else _DROP},
        "search": {"cost": "latency_ms.local", "trials": 4},
        "multiple_of": "auto",
    }
