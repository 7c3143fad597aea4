"""The interface that every factorization implements."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from lowrank.factorize.spectra import Spectrum
from lowrank.plan import PlainLayer


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
    """

    name: ClassVar[str]
    rank_names: ClassVar[tuple[str, ...]]

    def applies_to(self, layer: PlainLayer) -> str | None:
        """None where it takes layers of this shape, else the reason why not, for a user."""
        return None

    @abstractmethod
    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """The largest useful ranks: with them the factors can equal the kernel."""

    def consistent(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """The ranks, lowered where another rank makes the surplus useless."""
        return ranks

    @abstractmethod
    def spectra(self, kernel: np.ndarray) -> tuple[Spectrum, ...]:
        """The spectrum of the unfolding that belongs to each rank; the kernel is of any float."""

    @abstractmethod
    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """The plain layers that replace the layer; the last one carries its bias."""

    @abstractmethod
    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """The kernels of those plain layers, in their order, from a kernel in float64."""
