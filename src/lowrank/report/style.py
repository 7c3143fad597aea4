"""What all pictures share."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType

import matplotlib as mpl
from matplotlib.figure import Figure

from lowrank.files import written_whole

# Okabe & Ito 2008: told apart by the colour-blind. What they say is said by shape, too.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = "osD^vP"


# What the metadata of pictures say that are being drawn.
_ORIGIN: ContextVar[Mapping[str, str]] = ContextVar("origin", default=MappingProxyType({}))


@contextlib.contextmanager
def stamped(origin: Mapping[str, str]) -> Iterator[None]:
    """Let pictures that are saved inside the block say what made their figures.

    Parameters
    ----------
    origin
        As `lowrank.report.provenance.origin_of` returns it.
    """
    token = _ORIGIN.set(origin)
    try:
        yield
    finally:
        _ORIGIN.reset(token)


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as SVG; the same figures give the same bytes: no date, no random names."""
    metadata = {"Date": None, "Creator": "lowrank", **_ORIGIN.get()}
    with (
        mpl.rc_context({"svg.hashsalt": "lowrank", "svg.fonttype": "none"}),
        written_whole(path) as partial,
    ):
        figure.savefig(partial, format="svg", metadata=metadata)
