"""Block-term decomposition: a 1 x 1 convolution, a small grouped core, a 1 x 1 convolution."""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import numpy as np

from lowrank.core.layers import PlainLayer
from lowrank.factorize.factorization import Factorization, windowed
from lowrank.factorize.spectra import ROUNDING, Spectrum
from lowrank.factorize.tucker2 import Tucker2

_TUCKER2 = Tucker2()
_ONE_SWEEP = Tucker2(max_sweeps=1)

# The factors of one block: V (S, R3 / B), U (T, R4 / B) and the core (R4 / B, R3 / B D^2).
_Block = tuple[np.ndarray, np.ndarray, np.ndarray]


@dataclass(frozen=True)
class BlockTerm(Factorization):
    """A sum of B Tucker-2 terms; their cores together form one grouped convolution.

    Source: Wang & Cheng 2016, "Accelerating convolutional neural networks for mobile applications".
    At the same ranks, the core has B times fewer weights than the core of Tucker-2. The blocks are
    found one after another, each for the residual of the previous blocks. Then they are improved in
    turn.

    Parameters
    ----------
    blocks
        Number of blocks, B. Ranks are totals over the blocks, so they are multiples of B.
    tolerance
        Stop when a sweep over the blocks lowers the relative error by less than this share.
    max_sweeps
        Stop after this many sweeps over the blocks.
    """

    blocks: int
    tolerance: float = 3e-4
    max_sweeps: int = 50

    rank_names: ClassVar[tuple[str, ...]] = Tucker2.rank_names
    is_closed_form: ClassVar[bool] = False

    @property
    def name(self) -> str:  # type: ignore[override]
        """`block_term` followed by the number of blocks."""
        return f"block_term{self.blocks}"

    @property
    def rank_multiple(self) -> int:  # type: ignore[override]
        """Number of blocks."""
        return self.blocks

    def applies_to(self, layer: PlainLayer) -> str | None:
        """Reject the layers that Tucker-2 rejects."""
        return _TUCKER2.applies_to(layer)

    def full_ranks(self, layer: PlainLayer) -> tuple[int, ...]:
        """Return S and B T: the blocks share the input channels, and each has all output channels.

        S is rounded up to a multiple of B. A rank is smaller if fewer directions exist, as for
        Tucker-2. At these ranks, the factors cost more than the kernel that they reproduce.
        """
        inputs, outputs = _TUCKER2.full_ranks(layer)
        inputs_of_block = -(-inputs // self.blocks)
        outputs_of_block = min(outputs, inputs_of_block * prod(layer.kernel))
        return self.blocks * inputs_of_block, self.blocks * outputs_of_block

    def consistent(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[int, ...]:
        """Round down to multiples of B, at least B, and limit the ranks of each block.

        The limit is that of Tucker-2.
        """
        block_ranks = tuple(max(1, rank // self.blocks) for rank in ranks)
        return tuple(self.blocks * rank for rank in _TUCKER2.consistent(layer, block_ranks))

    def spectra(self, kernel: np.ndarray) -> tuple[Spectrum, ...]:
        """Return the spectra of the unfoldings S x (T D^2) and T x (S D^2), as for Tucker-2."""
        return _TUCKER2.spectra(kernel)

    def sequence(self, layer: PlainLayer, ranks: tuple[int, ...]) -> tuple[PlainLayer, ...]:
        """Return the layers: 1 x 1 (S to R3), window in B groups (R3 to R4), 1 x 1 (R4 to T)."""
        input_rank, output_rank = ranks
        return (
            PlainLayer(layer.in_channels, input_rank),
            windowed(layer, input_rank, output_rank, groups=self.blocks),
            PlainLayer(output_rank, layer.out_channels, bias=layer.bias),
        )

    def factors(self, kernel: np.ndarray, ranks: tuple[int, ...]) -> tuple[np.ndarray, ...]:
        """Return kernels of shapes (R3, S, 1, 1), (R4, R3 / B, D_h, D_w) and (T, R4, 1, 1)."""
        window = kernel.shape[2:]
        block_ranks = tuple(rank // self.blocks for rank in ranks)
        inputs, outputs, cores = zip(*self._blocks(kernel, block_ranks), strict=True)
        return (
            np.hstack(inputs).T[:, :, None, None],
            np.vstack(cores).reshape(ranks[1], block_ranks[0], *window),
            np.hstack(outputs)[:, :, None, None],
        )

    def _blocks(self, residual: np.ndarray, ranks: tuple[int, ...]) -> list[_Block]:
        """Return the blocks at the ranks of one block.

        `residual` is the kernel; it is overwritten with the part that the blocks leave.
        """
        norm_squared = float(np.vdot(residual, residual))
        blocks: list[_Block] = []
        for _ in range(self.blocks):
            blocks.append(_TUCKER2.approximation(residual, ranks))
            _add(residual, blocks[-1], -1)
        error_squared = float(np.vdot(residual, residual))
        for _ in range(self.max_sweeps):
            if error_squared <= ROUNDING * norm_squared:
                break
            for index, block in enumerate(blocks):
                _add(residual, block, 1)
                blocks[index] = _ONE_SWEEP.approximation(residual, ranks, start=block[:2])
                _add(residual, blocks[index], -1)
            previous, error_squared = error_squared, float(np.vdot(residual, residual))
            # To first order, the relative change of the squared error is twice that of the error.
            if previous - error_squared <= 2 * self.tolerance * error_squared:
                break
        return blocks


def _add(kernel: np.ndarray, block: _Block, sign: int) -> None:
    """Add a block to the kernel (T, S, D_h, D_w) in place, or subtract it."""
    input_vectors, output_vectors, core = block
    by_tap = core.reshape(len(core), input_vectors.shape[1], -1)
    for tap in range(by_tap.shape[2]):
        height, width = divmod(tap, kernel.shape[3])
        # (T, R4) x (R4, R3) x (R3, S) -> (T, S), one tap at a time to avoid a second array of the
        # kernel's size, which `tucker_to_tensor` of TensorLy would need.
        kernel[:, :, height, width] += sign * (
            (output_vectors @ by_tap[:, :, tap]) @ input_vectors.T
        )


ENTRIES = tuple(BlockTerm(blocks) for blocks in (2, 4, 8))
