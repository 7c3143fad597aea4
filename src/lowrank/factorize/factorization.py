"""Interface of all factorizations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import ClassVar

import numpy as np

from lowrank.core.layers import PlainLayer
from lowrank.factorize.spectra import Spectrum

LAYER_KINDS = ("window", "matrix")


class Factorization(ABC):
    """A way to replace one convolution by a sequence of smaller plain convolutions.

    The rest of the program uses a factorization only through `sequence` and `factors`. Layers and
    kernels passed to these methods have one group; the module `groups` handles grouped layers for
    all factorizations. In the shapes below, a kernel is (T, S, D_h, D_w): output channels, input
    channels, height and width of the window.

    Attributes
    ----------
    name
        Name in params.yaml.
    rank_names
        One name for each rank, in the order in which ranks are passed.
    layer_kinds
        Kinds of layer for which params.yaml offers the factorization: "window" for convolutions
        larger than 1 x 1 and linear layers behind a flattened map, "matrix" for 1 x 1 convolutions
        and the other linear layers.
    rank_multiple
        Ranks are multiples of this number.
    removes_channels
        True if the first plain layer only selects some of the input channels. Their number is the
        first rank.
    ranks_are_widths
        True if ranks are numbers of channels, so that `multiple_of` and `minimum` apply to them.
    is_closed_form
        True if the factors follow from a few eigenproblems, which take seconds at most. False if
        terms are computed one after another, which may take minutes for a large kernel.
    """

    name: ClassVar[str]
    rank_names: ClassVar[tuple[str, ...]]
    layer_kinds: ClassVar[tuple[str, ...]] = ("window",)
    rank_multiple: int = 1
    is_closed_form: ClassVar[bool] = True
    removes_channels: ClassVar[bool] = False
    ranks_are_widths: ClassVar[bool] = True

    def applies_to(self, layer: PlainLayer) -> str | None:
        """Return None if layers of this shape can be factored, or the reason why they cannot.

        The reason is shown to the user.
        """
        return None

    @abstractmethod
    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """Return the largest useful ranks, at which the factors can equal the kernel."""

    def consistent(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """Return ranks that are allowed multiples and that no other rank makes partly useless."""
        return ranks

    def spectra(self, kernel: np.ndarray) -> tuple[Spectrum, ...]:
        """Return the spectrum of the unfolding for each rank; the kernel may have any float type.

        The result is empty if no unfolding indicates a rank, as in the CP decomposition. Rank rules
        that need spectra (EVBMF, energy) then cannot be used.
        """
        return ()

    def kept(self, kernel: np.ndarray) -> np.ndarray | None:
        """Return the squared norm that the factors keep, for every choice of ranks.

        Parameters
        ----------
        kernel
            Shape (T, S, D_h, D_w), any float type.

        Returns
        -------
        np.ndarray or None
            Array with the full ranks as its shape. Entry [r - 1, ...] is for ranks (r, ...); the
            last entry is the squared norm of the kernel. None if each choice would need a
            decomposition of its own.
        """
        spectra = self.spectra(kernel)
        if len(spectra) != 1:
            return None
        (full,) = self.full_ranks(plain_layer(kernel))
        values = np.square(spectra[0].singular_values)
        return np.cumsum(np.pad(values, (0, full - len(values))))

    def kept_of_outputs(self, kernel: np.ndarray, covariance: np.ndarray) -> np.ndarray | None:
        """Return the squared norm of the outputs that the factors keep, for every choice of ranks.

        Only for a factorization with a `factors_for_outputs` of its own; otherwise None. The
        arguments are those of `factors_for_outputs`; the result is as in `kept`.
        """
        return None

    @abstractmethod
    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """Return the plain layers that replace the layer; the last one has its bias."""

    def tail(
        self, layer: PlainLayer, ranks: tuple[int, ...]
    ) -> tuple[Factorization, PlainLayer, tuple[int, ...]] | None:
        """Return the layers behind the first layer as a factorization, or None if they are not one.

        Returns
        -------
        tuple or None
            The factorization, the layer that it decomposes, and its ranks.
        """
        return None

    @abstractmethod
    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return the kernels of the plain layers, in their order.

        The kernel is float64 and C-contiguous, and may be overwritten: for a large kernel there may
        be no memory for another copy.
        """

    def factors_for_outputs(
        self, kernel: np.ndarray, ranks: tuple[int, ...], covariance: np.ndarray
    ) -> tuple[np.ndarray, ...] | None:
        """Return the kernels of the plain layers with the smallest error of the layer's outputs.

        By default None: `lowrank.factorize.moments` then derives them from `factors`.

        Parameters
        ----------
        kernel
            Shape (T, S, D_h, D_w), any float type.
        ranks
            The ranks.
        covariance
            Covariance of the patches, (S D_h D_w, S D_h D_w), or of the channels, (S, S); positive
            definite.
        """
        return None


def mistake_in(factorization: Factorization) -> str | None:
    """Return what is wrong with the attributes of a factorization from an installed package."""
    names = getattr(factorization, "rank_names", ())
    if not (isinstance(names, tuple) and names and all(isinstance(name, str) for name in names)):
        return f"has `rank_names = {names!r}`; expected a tuple with a name for each rank"
    kinds = factorization.layer_kinds
    if not (isinstance(kinds, tuple) and kinds and {*kinds} <= {*LAYER_KINDS}):
        known = " and ".join(map(repr, LAYER_KINDS))
        return f"has `layer_kinds = {kinds!r}`; expected a tuple of {known}"
    return None


def plain_layer(kernel: np.ndarray) -> PlainLayer:
    """Return a layer with a kernel of shape (T, S, D_h, D_w)."""
    outputs, inputs, height, width = kernel.shape
    return PlainLayer(inputs, outputs, kernel=(height, width))


def windowed(
    layer: PlainLayer, in_channels: int, out_channels: int, *, groups: int = 1
) -> PlainLayer:
    """Return the layer with other channels and no bias.

    Window, stride, padding and dilation stay the same.
    """
    return replace(
        layer, in_channels=in_channels, out_channels=out_channels, groups=groups, bias=False
    )


def along_axis(
    layer: PlainLayer, axis: int, in_channels: int, out_channels: int, *, groups: int = 1
) -> PlainLayer:
    """Return the result of `windowed` along one axis only: 0 for D_h x 1, 1 for 1 x D_w."""

    def keep_axis(pair: tuple[int, int], default: int) -> tuple[int, int]:
        return (pair[0], default) if axis == 0 else (default, pair[1])

    return PlainLayer(
        in_channels,
        out_channels,
        kernel=keep_axis(layer.kernel, 1),
        stride=keep_axis(layer.stride, 1),
        padding=keep_axis(layer.padding, 0),
        dilation=keep_axis(layer.dilation, 1),
        groups=groups,
    )
