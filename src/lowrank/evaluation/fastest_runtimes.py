"""Find the runtime in which each file of a result is fastest."""

from __future__ import annotations

from typing import Any


def add_fastest_runtimes(by_runtime: dict[str, dict[str, Any]]) -> None:
    """Add `fastest_runtime` to the first measurement: for each file, the one of lowest latency.

    The latencies are medians in ms that were measured one after the other.

    Parameters
    ----------
    by_runtime
        Results of `DeviceMeasurements.latencies` with equal settings but for the runtime, by its
        name, the main measurement first.
    """
    main = next(iter(by_runtime.values()))
    for place in ("", "int8", "control.int8"):
        blocks = {name: _block(figures, place) for name, figures in by_runtime.items()}
        milliseconds = {
            file: {
                name: block[file]["p50"]
                for name, block in blocks.items()
                if block and "not_measured" not in block
            }
            for file in (("compressed",) if place else ("original", "compressed"))
        }
        fastest = {file: min(ms, key=ms.__getitem__) for file, ms in milliseconds.items() if ms}
        if block := _block(main, place):
            block["fastest_runtime"] = fastest


def _block(measured: dict[str, Any], place: str) -> dict[str, Any] | None:
    """Return the block of a measurement at `place`, keys with dots; None without one."""
    block: dict[str, Any] | None = measured
    for key in filter(None, place.split(".")):
        block = block.get(key) if block else None
    return block
