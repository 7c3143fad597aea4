"""Channel removal together with factors: the channels that stay are read by factors."""

from dataclasses import fields
from typing import ClassVar

import numpy as np

from lowrank.core.layers import PlainLayer
from lowrank.factorize.factorization import Factorization, plain_layer
from lowrank.factorize.moments import weighted_factors, whitened
from lowrank.factorize.remove_channels import RemoveChannels, covariance_of_channels_that_stay
from lowrank.factorize.spatial_svd import SpatialSvd
from lowrank.factorize.svd import Svd

_REMOVAL = RemoveChannels()


class RemoveAndFactorize(Factorization):
    """Removal of input channels, and factors for the kernel that is solved for those that stay.

    Channels are removed as by `RemoveChannels`. The solved kernel is then factorized in the norm of
    the outputs for the channels that stay. The two squared errors add up, because the error of the
    solved kernel is not correlated with these channels.

    The ranks are the number of channels and those of the factors.
    """

    removes_channels: ClassVar[bool] = True
    #: Factorization of the kernel for the channels that stay; it has one rank.
    inner: ClassVar[Factorization]

    def applies_to(self, layer: PlainLayer) -> str | None:
        """Return why channels cannot be removed, or why the rest cannot be factored, or None."""
        return _REMOVAL.applies_to(layer) or self.inner.applies_to(layer)

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """Return (S, full rank of the factors)."""
        return *_REMOVAL.full_ranks(layer), *self.inner.full_ranks(layer)

    def consistent(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """Return ranks that are not above the full ranks for the channels that stay."""
        channels, rank = ranks
        (full,) = self.inner.full_ranks(_with_channels(layer, channels))
        return channels, min(rank, full)

    def kept(self, kernel: np.ndarray) -> np.ndarray:
        """Return a lower bound of the squared norm that is kept, for each choice of ranks."""
        inner = self.inner.kept(kernel)
        assert inner is not None
        return _both_kept(_REMOVAL.kept(kernel), inner)

    def kept_of_outputs(self, kernel: np.ndarray, covariance: np.ndarray) -> np.ndarray:
        """Return a lower bound of the squared norm of the outputs that is kept."""
        product, _ = whitened(self.inner, plain_layer(kernel), kernel, covariance)
        inner = self.inner.kept(product)
        assert inner is not None
        return _both_kept(_REMOVAL.kept_of_outputs(kernel, covariance), inner)

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """Return the layers: a selection (S to R), and the factors for R input channels."""
        channels, *inner = ranks
        selection = PlainLayer(layer.in_channels, channels, selects=True)
        return selection, *self.inner.sequence(_with_channels(layer, channels), tuple(inner))

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return the selection, (R, S, 1, 1), and the factors for the channels that stay."""
        channels, *inner = ranks
        selection, rest = _REMOVAL.factors(kernel, (channels,))
        return selection, *self.inner.factors(rest, tuple(inner))

    def factors_for_outputs(
        self, kernel: np.ndarray, ranks: tuple[int, ...], covariance: np.ndarray
    ) -> tuple[np.ndarray, ...]:
        """Return the factors in the shapes of `factors`, for a small error of the outputs."""
        channels, *inner = ranks
        selection, rest = _REMOVAL.factors_for_outputs(kernel, (channels,), covariance)
        of_rest = covariance_of_channels_that_stay(selection, covariance)
        factors = weighted_factors(self.inner, plain_layer(rest), rest, tuple(inner), of_rest)
        return selection, *factors


class RemoveChannelsSpatialSvd(RemoveAndFactorize):
    """Channel removal, then a window along the height and one along the width."""

    name: ClassVar[str] = "remove_channels_spatial_svd"
    rank_names: ClassVar[tuple[str, ...]] = ("channels", "rank")
    inner: ClassVar[Factorization] = SpatialSvd()


class RemoveChannelsSvd(RemoveAndFactorize):
    """Channel removal, then the window with fewer outputs and a 1 x 1 convolution."""

    name: ClassVar[str] = "remove_channels_svd"
    rank_names: ClassVar[tuple[str, ...]] = ("channels", "rank")
    layer_kinds: ClassVar[tuple[str, ...]] = ("window", "matrix")
    inner: ClassVar[Factorization] = Svd()


def _with_channels(layer: PlainLayer, channels: int) -> PlainLayer:
    """Return a plain layer with other input channels."""
    values = {field.name: getattr(layer, field.name) for field in fields(PlainLayer)}
    return PlainLayer(**values | {"in_channels": channels})


def _both_kept(of_removal: np.ndarray, of_factors: np.ndarray) -> np.ndarray:
    """Return what is kept at least, (S, full rank), if both squared errors add up.

    The factors of fewer channels lose no more than those of all channels.
    """
    lost = of_removal[-1] - of_removal
    kept: np.ndarray = np.maximum(of_factors[None, :] - lost[:, None], 0.0)
    return kept


ENTRIES = (RemoveChannelsSpatialSvd(), RemoveChannelsSvd())
