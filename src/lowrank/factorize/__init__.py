"""Factorizations in NumPy, one file each."""

from lowrank.errors import unknown_name
from lowrank.factorize.block_term import BlockTerm
from lowrank.factorize.cp4 import Cp4
from lowrank.factorize.cp_als import CpAls
from lowrank.factorize.cp_tpm import CpTpm
from lowrank.factorize.evbmf import evbmf_rank
from lowrank.factorize.factorization import Factorization
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
from lowrank.factorize.spatial_svd import SpatialSvd
from lowrank.factorize.spectra import Spectrum
from lowrank.factorize.svd import ChannelSvd, Svd
from lowrank.factorize.tensor_train import TensorTrain
from lowrank.factorize.tucker1 import Tucker1
from lowrank.factorize.tucker2 import Tucker2

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

FACTORIZATIONS: dict[str, Factorization] = {
    factorization.name: factorization
    for factorization in (
        Tucker2(),
        Tucker1(),
        Svd(),
        ChannelSvd(),
        SpatialSvd(),
        TensorTrain(),
        CpTpm(),
        CpAls(),
        Cp4(),
        *(BlockTerm(blocks) for blocks in (2, 4, 8)),
    )
}


def get_factorization(name: str) -> Factorization:
    """Return the factorization with that name. Raises UserError for an unknown name."""
    try:
        return FACTORIZATIONS[name]
    except KeyError:
        raise unknown_name("factorization", name, FACTORIZATIONS) from None
