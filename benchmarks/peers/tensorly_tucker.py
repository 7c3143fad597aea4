"""Factorize convolutions with TensorLy-Torch: its Tucker convolution, with a share as the rank."""

from peer import Work, largest_within, timed
from tltorch import FactorizedConv
from torch import nn


def main() -> None:
    work = Work()

    def factorized(share: float, decompose: bool) -> nn.Module:
        network = work.copy()
        for name, layer in list(network.named_modules()):
            # Tucker of a pointwise convolution would be three of them.
            if isinstance(layer, nn.Conv2d) and max(layer.kernel_size) > 1:
                factors = FactorizedConv.from_conv(
                    layer,
                    rank=max(share, 1e-3),
                    factorization="tucker",
                    implementation="factorized",
                    decompose_weights=decompose,
                    fixed_rank_modes="spatial",
                )
                network.set_submodule(name, factors)
        return network

    def within() -> nn.Module:
        # Counting needs no decomposition, which takes minutes.
        share = largest_within(work.limit, lambda share: factorized(share, decompose=False))
        return factorized(share, decompose=True)

    work.keep_best([timed("Tucker, one share of the parameters", within)])


if __name__ == "__main__":
    main()
