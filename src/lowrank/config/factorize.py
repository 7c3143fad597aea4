"""`methods.<name>.factorize`: the factorization for each kind of layer."""

from typing import Literal

from pydantic import Field

from lowrank.settings.section import Section

_CONVOLUTION = (
    "tucker1", "tucker2", "cp_tpm", "cp_als", "cp4", "svd", "channel_svd", "spatial_svd",
    "tensor_train",
    "block_term2", "block_term4", "block_term8",
)  # fmt: skip


_Convolution = Literal[_CONVOLUTION]  # type: ignore[valid-type]


class FactorizeSettings(Section):
    """Factorization for each kind of layer; null leaves that kind dense."""

    chooses = ("norm",)

    first_conv: _Convolution | None = Field(
        None,
        description="Factorization of the first convolution of the network, which has few input "
        "channels.",
    )
    conv: _Convolution | None = Field(
        None, description="Factorization of the other convolutions, if their kernel is not 1 x 1."
    )
    pointwise_conv: Literal["svd"] | None = Field(
        None, description="Factorization of 1 x 1 convolutions."
    )
    flattened_linear: _Convolution | None = Field(
        None,
        description="Factorization of a linear layer behind a flattened map, treated as a "
        "convolution over that map. null: as for `linear`.",
    )
    linear: Literal["svd"] | None = Field(None, description="Factorization of linear layers.")
    norm: Literal["weight", "activation"] = Field(
        "weight",
        description="What the factors approximate. `weight`: the kernel. `activation`: the "
        "layer's outputs on training images.",
    )
    images: int = Field(
        1000,
        ge=1,
        description="For `norm: activation`: number of training images. Their labels are not used.",
    )
    sequential: bool = Field(
        False,
        description="For `norm: activation`: decompose the layers one after another instead of in "
        "parallel. Each layer uses its inputs from the already decomposed layers before it, and "
        "is fitted to the outputs of the original network.",
    )
    alternatives: tuple[_Convolution, ...] = Field(
        (),
        description="For `select: budget`: more factorizations for convolutions larger than 1 x "
        "1. Each of them gets the factorization that loses least for its cost.",
    )
    include: tuple[str, ...] = Field(
        ("*",),
        description="Factor only layers whose name matches one of these shell patterns (`*`, `?`).",
    )
    exclude: tuple[str, ...] = Field(
        (), description="Do not factor layers whose name matches one of these shell patterns."
    )

    def by_kind(self) -> dict[str, str | None]:
        """Return the factorization of each kind of layer."""
        others = {"norm", "images", "sequential", "alternatives", "include", "exclude"}
        return self.model_dump(exclude=others)
