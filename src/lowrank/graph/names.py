"""Names and paths that the rules share, and the wildcards of a job."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

TABLES = Path("data/networks")
# Of a layer in its network, `features.conv1_1`; a file of factors has this name.
LAYER_NAME = r"[\w.-]+"
FIRST_RUN = Path("build/first_run")
# What code of lowrank's made a table, which the table does not say: it is in Git, and would change
# with every change of that code.
TABLE_CODE = Path("build/table_code")
RESULTS = Path("results")


class Wildcards(Protocol):
    """What Snakemake hands to an input function; each rule has some of these."""

    model: str
    method: str
    at: str
    round: str
    study: str
    number: str
    layer: str
    device: str


def splits_of(wildcards: Wildcards) -> str:
    """Return the folder that says which images choices about a network are made on."""
    return f"build/{wildcards.model}/original/splits"


def place_of_round(number: int) -> str:
    """Return the folder of a round's ranks and factors, below that of its variant."""
    return "first" if number == 1 else f"rounds/{number}"
