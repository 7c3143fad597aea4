"""Factorizations in NumPy, one file each. Each file lists its factorizations in `ENTRIES`."""

from functools import partial

from lowrank.core.registries import Registry, entries_in
from lowrank.factorize.evbmf import evbmf_rank
from lowrank.factorize.factorization import Factorization, mistake_in
from lowrank.factorize.groups import (
    Decomposition,
    decompose,
    group_kernels,
    grouped_sequence,
    kernel_of,
    one_group,
)
from lowrank.factorize.moments import Moments, Shift, carried_over
from lowrank.factorize.reconstruction import reconstruct
from lowrank.factorize.spectra import Spectrum

__all__ = [
    "FACTORIZATIONS",
    "Decomposition",
    "Factorization",
    "Moments",
    "Shift",
    "Spectrum",
    "carried_over",
    "decompose",
    "evbmf_rank",
    "get_factorization",
    "group_kernels",
    "grouped_sequence",
    "kernel_of",
    "one_group",
    "reconstruct",
]

# All factorizations, by name.
FACTORIZATIONS: Registry[Factorization] = Registry(
    "factorization",
    Factorization,  # type: ignore[type-abstract]  # Only for `isinstance`.
    group="lowrank.factorizations",
    built_in=partial(entries_in, "lowrank.factorize."),
    mistake_in=mistake_in,
)


def get_factorization(name: str) -> Factorization:
    """Return the factorization with that name.

    Raises UserError for an unknown name, or for a package whose factorization cannot be used.
    """
    return FACTORIZATIONS.get(name)
