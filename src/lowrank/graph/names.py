"""Names and paths that the rules share, and the wildcards of a job."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from lowrank.config.params import trial_name

TABLES = Path("data/networks")
# Pattern of a layer's name in its network, such as `features.conv1_1`. Files of factors use it.
LAYER_NAME = r"[\w.-]+"
FIRST_RUN = Path("build/first_run")
# Digests of the code that made each layer table. They are not in the tables themselves, because
# tables are in Git and would change with every change of that code.
TABLE_CODE = Path("build/table_code")
RESULTS = Path("results")
# What fine-tuning writes in the folder of a round.
FILES_OF_ROUND = ("model.safetensors", "metrics.json", "curve.json", "timing.json")
# Folder of a trial below the folder of its network.
_FOLDER_OF_TRIAL = re.compile(r"(.+)/search/([1-9]\d*)")


class Wildcards(Protocol):
    """The wildcards that Snakemake passes to an input function. Each rule has some of these."""

    model: str
    method: str
    at: str
    round: str
    study: str
    number: str
    layer: str
    device: str

    def keys(self) -> Iterable[str]:
        """Return the names of the wildcards of this rule."""


def folder_of_trial(method: str, number: int) -> str:
    """Return the folder of trial `number` of a method, relative to the folder of its network.

    It is below the folder of the method, so that one stage of DVC owns a search with its trials.
    """
    return f"{method}/search/{number}"


def method_of(wildcards: Wildcards) -> str:
    """Return the name of a job's method.

    In `build/` the wildcard `{method}` is the folder of a method. The folder of a trial differs
    from its name: `<method>/search/<number>` and `<method>_trial<number>`.
    """
    trial = _FOLDER_OF_TRIAL.fullmatch(wildcards.method)
    return trial_name(trial[1], int(trial[2])) if trial else wildcards.method


def splits_of(wildcards: Wildcards) -> str:
    """Return the folder of a network's splits: the images for choices, training and reports."""
    return f"build/{wildcards.model}/original/splits"


def place_of_round(number: int) -> str:
    """Return the folder of a round's ranks and factors, relative to the folder of its variant."""
    return "first" if number == 1 else f"rounds/{number}"
