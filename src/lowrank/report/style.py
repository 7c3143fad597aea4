"""Colours, markers and saving, shared by all pictures."""

import contextlib
import os
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from types import MappingProxyType

import matplotlib as mpl
from matplotlib.figure import Figure

from lowrank.files import written_whole

# Okabe & Ito 2008. Colour-blind readers can distinguish them, and shapes carry the same meaning.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#E69F00", "#009E73", "#666666"
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#D55E00")
MARKERS = "osD^vP"


# Metadata of the pictures that are being drawn.
_ORIGIN: ContextVar[Mapping[str, str]] = ContextVar("origin", default=MappingProxyType({}))


@contextlib.contextmanager
def stamped(origin: Mapping[str, str]) -> Iterator[None]:
    """Write the origin of the figures into the metadata of pictures saved inside the block.

    Parameters
    ----------
    origin
        The metadata that `lowrank.report.provenance.origin_of` returns.
    """
    token = _ORIGIN.set(origin)
    try:
        yield
    finally:
        _ORIGIN.reset(token)


def save(figure: Figure, path: str | os.PathLike) -> None:
    """Write a figure as a reproducible SVG file, without dates and random names."""
    metadata = {"Date": None, "Creator": "lowrank", **_ORIGIN.get()}
    with (
        mpl.rc_context({"svg.hashsalt": "lowrank", "svg.fonttype": "none"}),
        written_whole(path) as partial,
    ):
        figure.savefig(partial, format="svg", metadata=metadata)
