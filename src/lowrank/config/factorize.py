"""`methods.<name>.factorize`: which factorization each kind of layer gets."""

from typing import Literal

from pydantic import Field

from lowrank.config.section import Section

_CONVOLUTION = (
    "tucker1", "tucker2", "cp_tpm", "cp_als", "cp4", "svd", "channel_svd", "spatial_svd",
    "tensor_train",
    "block_term2", "block_term4", "block_term8",
)  # fmt: skip


_Convolution = Literal[_CONVOLUTION]  # type: ignore[valid-type]


class FactorizeSettings(Section):
    """Which factorization each kind of layer gets; null leaves the kind dense."""

    chooses = ("norm",)

    first_conv: _Convolution | None = Field(
        None, description="The network's first convolution, which has few input channels."
    )
    conv: _Convolution | None = Field(
        None, description="The other convolutions, of any kernel but 1 x 1."
    )
    pointwise_conv: Literal["svd"] | None = Field(None, description="Convolutions of 1 x 1.")
    flattened_linear: _Convolution | None = Field(
        None,
        description="A linear layer behind a flattened map, seen as a convolution over that map; "
        "null: as `linear`.",
    )
    linear: Literal["svd"] | None = Field(None, description="Linear layers.")
    norm: Literal["weight", "activation"] = Field(
        "weight",
        description="What the factors keep at their ranks: `weight`, the kernel; `activation`, the "
        "layer's outputs on training images.",
    )
    images: int = Field(
        1000, ge=1, description="For `activation`: training images; their labels are not used."
    )
    sequential: bool = Field(
        False,
        description="For `activation`: one layer after the other, each by its inputs behind those "
        "before it as they are then, to answer as in the original network. Not side by side.",
    )
    alternatives: tuple[_Convolution, ...] = Field(
        (),
        description="For `select: budget`: further factorizations, of which a convolution larger "
        "than 1 x 1 gets the one that loses least for its cost.",
    )
    include: tuple[str, ...] = Field(
        ("*",), description="Take layers whose name fits one of these; as in a shell: `*`, `?`."
    )
    exclude: tuple[str, ...] = Field((), description="But none whose name fits one of these.")

    def by_kind(self) -> dict[str, str | None]:
        """Factorization by kind of layer."""
        others = {"norm", "images", "sequential", "alternatives", "include", "exclude"}
        return self.model_dump(exclude=others)
