"""`methods.<name>.factorize`: the factorization for each kind of layer."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticKnownError, core_schema

from lowrank.errors import UserError
from lowrank.factorize import FACTORIZATIONS
from lowrank.settings.mistakes import refused
from lowrank.settings.section import Section


@dataclass(frozen=True)
class _FactorizationOf:
    """Type of the name of a factorization for one kind of layer, "window" or "matrix"."""

    kind: str

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self._checked)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"type": "string", "enum": self._names()}

    def _names(self) -> list[str]:
        usable = FACTORIZATIONS.usable().items()
        return [name for name, method in usable if self.kind in method.layer_kinds]

    def _checked(self, name: Any) -> str:
        """Return the name. Raises an error that pydantic reports if it cannot be used."""
        if name in FACTORIZATIONS.names():
            try:
                if self.kind in FACTORIZATIONS.get(name).layer_kinds:
                    return str(name)
            except UserError as error:
                raise refused(str(error).rstrip(".")) from error
        *others, last = map(repr, self._names())
        expected = f"{', '.join(others)} or {last}" if others else last
        raise PydanticKnownError("literal_error", {"expected": expected})


if TYPE_CHECKING:
    _ForWindow = str
    _ForMatrix = str
else:
    _ForWindow = Annotated[str, _FactorizationOf("window")]
    _ForMatrix = Annotated[str, _FactorizationOf("matrix")]


class FactorizeSettings(Section):
    """Factorization for each kind of layer; null leaves that kind dense."""

    chooses = ("norm",)

    first_conv: _ForWindow | None = Field(
        None,
        description="Factorization of the first convolution of the network, which has few input "
        "channels.",
    )
    conv: _ForWindow | None = Field(
        None, description="Factorization of the other convolutions, if their kernel is not 1 x 1."
    )
    pointwise_conv: _ForMatrix | None = Field(
        None, description="Factorization of 1 x 1 convolutions."
    )
    flattened_linear: _ForWindow | None = Field(
        None,
        description="Factorization of a linear layer behind a flattened map, treated as a "
        "convolution over that map. null: as for `linear`.",
    )
    linear: _ForMatrix | None = Field(None, description="Factorization of linear layers.")
    norm: Literal["weight", "activation"] = Field(
        "weight",
        description="What the factors approximate. `weight`: the kernel. `activation`: the "
        "layer's outputs on training images.",
    )
    images: int = Field(
        1000,
        ge=1,
        description="For `norm: activation`: number of calibration images. Their labels are not "
        "used.",
    )
    sequential: bool = Field(
        False,
        description="For `norm: activation`: decompose the layers one after another instead of in "
        "parallel. Each layer uses its inputs from the already decomposed layers before it, and "
        "is fitted to the outputs of the original network.",
    )
    alternatives: tuple[_ForWindow, ...] = Field(
        (),
        description="For `select: budget`: more factorizations. Each layer gets the one that loses "
        "least for its cost, among those for its kind of layer.",
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
