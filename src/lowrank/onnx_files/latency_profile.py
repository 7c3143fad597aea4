"""Measure on a device what the latency model needs for one network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from lowrank.core.layers import LayerTable
from lowrank.devices import FLOAT_PRODUCTS, INTEGER_PRODUCTS, Device
from lowrank.errors import UserError
from lowrank.onnx_files.forms import Form
from lowrank.onnx_files.layer_latencies import MeasuredLayers
from lowrank.onnx_files.whole_networks import Export, WholeNetworks
from lowrank.ranks.bounds import LatencyBound
from lowrank.ranks.budget_settings import BudgetSettings
from lowrank.ranks.latency_model import Latencies, grids_for
from lowrank.ranks.profiled_sequences import networks_near_target, possible_sequences
from lowrank.ranks.search_range import search_range

# Measurement settings for the nodes of one model, with the profile and without.
_PROFILE_SETTINGS = {"warmup_seconds": 0.05, "repeats": 20, "seconds": 0.15}


@dataclass(frozen=True)
class Candidates:
    """What may replace the layers of a network.

    Parameters
    ----------
    layers
        Factorization by layer.
    alternatives
        Alternative factorizations.
    settings
        Settings of the rank rule.
    device
        Name of the device in the target.
    """

    layers: dict[str, str]
    alternatives: list[str]
    settings: BudgetSettings
    device: str

    def share_of_layers(self, table: LayerTable, latencies: Latencies) -> float:
        """Return the target as a share of the latency of the unchanged layers, in their precision.

        For a search, this is the share in the middle of its range.
        """
        bound = LatencyBound(f"latency_ms.{self.device}", 1.0, latencies)
        if self.settings.searches:
            between = search_range(
                table,
                self.layers,
                self.alternatives,
                self.settings,
                {self.device: latencies},
            )
            share = prod(between) ** 0.5
        else:
            share = self.settings.target.latency_ms[self.device]
        return min(replace(bound, share=share).share_of_layers(table), 1.0)


@dataclass(frozen=True)
class LatencyProfile:
    """Measurements of a network's layers on one device.

    Parameters
    ----------
    device, settings
        The device and its settings, with a single value for each.
    form
        The form of the compressed networks.
    cache
        File with earlier measurements. New ones are added.
    say
        Called with lines of progress.
    """

    device: Device
    settings: dict[str, Any]
    form: Form
    cache: Path
    say: Callable[[str], object]

    def measured(
        self, original: Path, export: Export, table: LayerTable, candidates: Candidates
    ) -> Latencies:
        """Return the latencies of layers for all ranks that they may get.

        Some networks near the target are measured in one piece, to correct the sum over layers.

        Parameters
        ----------
        original
            The original network as ONNX; see `measured_form`.
        export
            Function that writes compressed versions.
        table
            The layer table of the network.
        candidates
            What may replace the layers.

        Raises
        ------
        DeviceError
            If the device fails.
        UserError
            If the device has no int8 kernels for the form.
        """
        layers, rule = candidates.layers, candidates.settings
        profile_settings = self.settings | _PROFILE_SETTINGS
        grids = grids_for(possible_sequences(table, layers, candidates.alternatives, rule))
        original_ms, rest = self._original_times(original, profile_settings)
        measured = MeasuredLayers(self.device, profile_settings, self.form, self.cache)
        latencies = Latencies.measured(original_ms, rest, grids, measured)
        self.say(f"{measured.count} convolutions measured; the original takes {original_ms:.3f} ms")
        whole = WholeNetworks(
            original, export, table, latencies, self.form, self.device, self.settings, self.say
        )
        pieces = [
            whole.milliseconds(sequences)
            for sequences in networks_near_target(
                table, layers, rule, candidates.share_of_layers(table, latencies)
            )
        ]
        return latencies.with_whole(pieces)

    def _original_times(self, original: Path, settings: dict[str, Any]) -> tuple[float, float]:
        """Return the ms of the original in float, and of its other operators in this form."""
        with self.form.of(original) as model:
            if self.form.is_quantized and (reason := self.device.lacks_int8(model, settings)):
                raise UserError(
                    f"benchmark.{self.device.name}: this device cannot meet a target of "
                    f"milliseconds in int8: {reason}. Remove `quantize` or the target for this "
                    "device."
                )
            nodes = self.device.node_times(model, settings).values()
        products = FLOAT_PRODUCTS | INTEGER_PRODUCTS
        rest = sum(node.milliseconds for node in nodes if node.operator not in products)
        in_float = self.device.node_times(original, settings).values()
        return sum(node.milliseconds for node in in_float), rest
