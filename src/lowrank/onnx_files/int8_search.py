"""Search for the nodes that must stay in float, so that an int8 network is good enough."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lowrank.core.progress import Progress
from lowrank.devices.processor import IntegerTypes
from lowrank.onnx_files.int8 import Quantizer


@dataclass(frozen=True)
class Kept:
    """Result of a search for nodes that stay in float.

    Attributes
    ----------
    nodes
        Names of the nodes that stay in float.
    lost
        Drop of the metric, in the unit of the tolerance.
    within
        Whether `lost` is within the tolerance.
    measured
        Number of nodes whose sensitivity was measured.
    """

    nodes: tuple[str, ...]
    lost: float
    within: bool
    measured: int = 0


@dataclass(frozen=True)
class ToleranceSearch:
    """Search for an int8 file whose drop of the metric is within a tolerance.

    If int8 loses too much, the most sensitive nodes stay in float. The sensitivity of a node is
    measured with only this node in int8. Then the most sensitive node stays in float, then the two
    most sensitive nodes, then four and so on, until the drop is within the tolerance. Then a
    bisection finds how many of the last nodes can be in int8 again. The measurement takes at most
    half of `seconds`. Nodes that were not measured count as less sensitive than all measured nodes.
    After `seconds`, the file within the tolerance that has the fewest nodes in float is written,
    or, if there is none, the file with the smallest drop.

    Parameters
    ----------
    quantizer
        Quantizer of the network.
    lost
        Returns how much worse a file is than the network in float, in the unit of `tolerance`.
    divergence
        Returns the divergence between the outputs of a file and of the network in float.
    tolerance
        Largest accepted drop of the metric.
    types
        Integer types of the file, by default those for this machine.
    seconds
        Time limit of the search. A step that has started is always completed.
    but
        Nodes that always stay in float.
    unit
        Unit of the drop, for messages.
    say
        Called with messages about the measurements.
    clock
        Returns the time in seconds.
    """

    quantizer: Quantizer
    lost: Callable[[Path], float]
    divergence: Callable[[Path], float]
    tolerance: float
    types: IntegerTypes | None = None
    seconds: float = math.inf
    but: Sequence[str] = ()
    unit: str = "points"
    say: Callable[[str], object] = lambda _: None
    clock: Callable[[], float] = time.monotonic

    def write(self, path: Path) -> Kept:
        """Write the int8 file; return the nodes that stay in float, and its drop."""
        start = self.clock()
        drop = self._drop(path, ())
        if drop <= self.tolerance:
            return Kept((), drop, within=True)
        candidates = [node for node in self.quantizer.nodes if node not in self.but]
        limit = f", for at most {self.seconds:.0f} seconds" if self.seconds < math.inf else ""
        self.say(
            f"int8 loses {drop:.2f} {self.unit}, more than {self.tolerance:g}: measuring the "
            f"sensitivity of {len(candidates)} nodes{limit}"
        )
        measured = self._sensitivities(candidates, until=start + self.seconds / 2)
        order = sorted(measured, key=measured.__getitem__, reverse=True)
        order += [node for node in candidates if node not in measured]
        best, too_few, count = Kept((), drop, within=False, measured=len(measured)), 0, 1
        while self.clock() < start + self.seconds:
            kept = self._trial(path, order[:count], len(measured))
            if kept.within:
                return self._with_fewest_nodes(path, order, kept, too_few, start + self.seconds)
            if len(kept.nodes) == len(order):
                return kept
            if kept.lost < best.lost:
                best = kept
            too_few, count = count, 2 * count
        self.say(
            f"warning: the search stopped after {self.clock() - start:.0f} seconds "
            f"(`quantize.search_seconds`) with {len(measured)} of {len(candidates)} nodes "
            f"measured; the file loses {best.lost:.2f} {self.unit} with {len(best.nodes)} nodes in "
            "float"
        )
        self._quantize(path, best.nodes)
        return best

    def _with_fewest_nodes(
        self, path: Path, order: Sequence[str], best: Kept, too_few: int, until: float
    ) -> Kept:
        """Write the file with the fewest nodes in float, between `too_few` and those of `best`."""
        last = best
        while len(best.nodes) - too_few > 1 and self.clock() < until:
            count = (too_few + len(best.nodes)) // 2
            last = self._trial(path, order[:count], best.measured)
            if last.within:
                best = last
            else:
                too_few = count
        if last is not best:
            self._quantize(path, best.nodes)
        return best

    def _trial(self, path: Path, nodes: Sequence[str], measured: int) -> Kept:
        """Write the file with these nodes in float, and report its drop."""
        drop = self._drop(path, nodes)
        count = "1 node" if len(nodes) == 1 else f"{len(nodes)} nodes"
        self.say(f"{count} in float ({_listed(nodes)}): int8 loses {drop:.2f} {self.unit}")
        return Kept(tuple(nodes), drop, drop <= self.tolerance, measured)

    def _quantize(self, path: Path, in_float: Sequence[str]) -> None:
        self.quantizer.write(path, self.types, but=(*self.but, *in_float))

    def _drop(self, path: Path, in_float: Sequence[str]) -> float:
        """Write the file with these nodes in float, and return its drop."""
        self._quantize(path, in_float)
        return self.lost(path)

    def _sensitivities(self, nodes: Sequence[str], *, until: float) -> dict[str, float]:
        """Return the divergence with only one node in int8, by node, until time runs out."""
        progress, divergences = Progress(len(nodes), "nodes"), {}
        with tempfile.TemporaryDirectory() as folder:
            trial = Path(folder) / "one.onnx"
            for node in nodes:
                if self.clock() >= until:
                    break
                self.quantizer.write(trial, self.types, only=[node])
                divergences[node] = self.divergence(trial)
                progress.advance()
        return divergences


def _listed(nodes: Sequence[str], limit: int = 4) -> str:
    more = f" and {len(nodes) - limit} more" if len(nodes) > limit else ""
    return ", ".join(nodes[:limit]) + more
