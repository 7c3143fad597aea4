"""The interface that every factorization implements."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

import numpy as np

from lowrank.core.layers import PlainLayer
from lowrank.factorize.spectra import Spectrum


class Factorization(ABC):
    """A way to replace one convolution by a sequence of smaller plain convolutions.

    All that the rest of the program knows of a factorization follows from `sequence` and
    `factors`. The layers and kernels given to these methods have one group; the module `groups`
    takes care of grouped ones, around every factorization alike. In the shapes below, a kernel is
    (T, S, D_h, D_w): output channels, input channels, height and width of the window.

    Attributes
    ----------
    name
        What params.yaml calls it.
    rank_names
        One name for each rank, in the order in which ranks are passed.
    rank_multiple
        Ranks are multiples of this.
    is_closed_form
        Whether its factors follow from a few eigenproblems, and so take seconds at most. Otherwise
        terms are sought one after the other, which may take minutes for a large kernel.
    """

    name: ClassVar[str]
    rank_names: ClassVar[tuple[str, ...]]
    rank_multiple: int = 1
    is_closed_form: bool = True

    def applies_to(self, layer: PlainLayer) -> str | None:
        """None where it takes layers of this shape, else the reason why not, for a user."""
        return None

    @abstractmethod
    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """The largest useful ranks: with them the factors can equal the kernel."""

    def consistent(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """The ranks made multiples, and lowered where another rank makes the surplus useless."""
        return ranks

    def spectra(self, kernel: np.ndarray) -> tuple[Spectrum, ...]:
        """The spectrum of the unfolding that belongs to each rank; the kernel is of any float.

        Empty where no unfolding says how large a rank should be, as in the CP decomposition: then
        rules that look at spectra (EVBMF, energy) do not go with the factorization.
        """
        return ()

    def kept(self, kernel: np.ndarray) -> np.ndarray | None:
        """The squared norm that the factors keep, at every choice of ranks.

        Parameters
        ----------
        kernel
            Shape (T, S, D_h, D_w), any float type.

        Returns
        -------
        np.ndarray or None
            Of the shape of the full ranks: entry [r - 1, ...] is for ranks (r, ...), and the last
            one is the squared norm of the kernel. None where that takes a decomposition for each
            choice.
        """
        spectra = self.spectra(kernel)
        if len(spectra) != 1:
            return None
        (full,) = self.full_ranks(plain_layer(kernel))
        values = np.square(spectra[0].singular_values)
        return np.cumsum(np.pad(values, (0, full - len(values))))

    @abstractmethod
    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """The plain layers that replace the layer; the last one carries its bias."""

    def tail(
        self, layer: PlainLayer, ranks: tuple[int, ...]
    ) -> tuple[Factorization, PlainLayer, tuple[int, ...]] | None:
        """What the layers behind the first one are, if they are a factorization themselves.

        That factorization, the layer that it would decompose, and its ranks.
        """
        return None

    @abstractmethod
    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """The kernels of those plain layers, in their order.

        The kernel is in float64, C-contiguous, and may be overwritten: large ones leave no room for
        another copy.
        """


def plain_layer(kernel: np.ndarray) -> PlainLayer:
    """A layer with that kernel, (T, S, D_h, D_w)."""
    outputs, inputs, height, width = kernel.shape
    return PlainLayer(inputs, outputs, kernel=(height, width))


def windowed(
    layer: PlainLayer, in_channels: int, out_channels: int, *, groups: int = 1
) -> PlainLayer:
    """A layer of other channels that carries the window, stride, padding and dilation; no bias."""
    return replace(
        layer, in_channels=in_channels, out_channels=out_channels, groups=groups, bias=False
    )


def along_axis(
    layer: PlainLayer, axis: int, in_channels: int, out_channels: int, *, groups: int = 1
) -> PlainLayer:
    """As `windowed`, but along one axis alone: 0 for D_h x 1, 1 for 1 x D_w."""

    def only(pair: tuple[int, int], otherwise: int) -> tuple[int, int]:
        return (pair[0], otherwise) if axis == 0 else (otherwise, pair[1])

    return PlainLayer(
        in_channels,
        out_channels,
        kernel=only(layer.kernel, 1),
        stride=only(layer.stride, 1),
        padding=only(layer.padding, 0),
        dilation=only(layer.dilation, 1),
        groups=groups,
    )
