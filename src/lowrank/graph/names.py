"""Names and paths that the rules share, and the wildcards of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

TABLES = Path("data/networks")
# Pattern of a layer's name in its network, such as `features.conv1_1`. Files of factors use it.
LAYER_NAME = r"[\w.-]+"
FIRST_RUN = Path("build/first_run")
# Digests of the code that made each layer table. They are not in the tables themselves, because
# tables are in Git and would change with every change of that code.
TABLE_CODE = Path("build/table_code")
RESULTS = Path("results")


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


def splits_of(wildcards: Wildcards) -> str:
    """Return the folder of a network's splits: the images for choices, training and reports."""
    return f"build/{wildcards.model}/original/splits"


def place_of_round(number: int) -> str:
    """Return the folder of a round's ranks and factors, relative to the folder of its variant."""
    return "first" if number == 1 else f"rounds/{number}"
