"""Where a network comes from: a name, or a function of the user's own. Nothing heavy here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lowrank.config.mistakes import described
from lowrank.errors import UserError

_Pixels = Annotated[int, Field(ge=1, le=65536)]


class NetworkSource(BaseModel):
    """How a network is built and what its weights expect of an image.

    It stands in params.yaml under `checkpoint.<model>`, on a step's command line as JSON, and in
    the header of every state file, so that each step can build the network anew.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    network: str | None = Field(
        None,
        min_length=1,
        description="A network of lowrank's own, or any torchvision classifier: `resnet50`, or "
        "`torchvision/vgg16` where lowrank has one of that name. Default: the entry's own name.",
    )
    factory: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$",
        description="Your own network: `package.module:function` that returns a torch.nn.Module, "
        "imported with the current folder on the path.",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Arguments of the function that builds the network."
    )
    torchvision_weights: str | None = Field(
        None,
        description="Which weights of torchvision's a torchvision network is for, such as "
        "IMAGENET1K_V2: the preprocessing is theirs. Default: those that torchvision calls best.",
    )
    input_shape: tuple[_Pixels, _Pixels, _Pixels] | None = Field(
        None, description="One image: channels, height, width. A factory needs it."
    )
    mean: tuple[float, ...] | None = Field(
        None,
        description="By channel, for pixels scaled to [0, 1]: none above 1. Default: the "
        "network's own; 0 for a factory.",
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="As `mean`. Default: the network's own; 1 for a factory."
    )
    resize: _Pixels | None = Field(
        None,
        description="Pixels of an image's shorter side before its middle is cut out at "
        "`input_shape`. Default: the network's own; images come at `input_shape` where that is "
        "given or there is none.",
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None, description="Of that resizing. Default: the network's own, bilinear for a factory."
    )
    channel_order: Literal["rgb", "bgr"] | None = Field(
        None, description="Default: the network's own, rgb for a factory."
    )

    @model_validator(mode="after")
    def _consistent(self) -> NetworkSource:
        if self.network and self.factory:
            raise ValueError("give either `network` or `factory`")
        if self.factory and not self.input_shape:
            raise ValueError(
                "a `factory` needs `input_shape`: channels, height, width of one image"
            )
        if self.factory and self.torchvision_weights:
            raise ValueError("`torchvision_weights` belongs to a network of torchvision's")
        return self

    @model_validator(mode="after")
    def _for_scaled_pixels(self) -> NetworkSource:
        """Refuse `mean` and `std` for pixels of 0 to 255, by which every image would be wrong."""
        given = {name: getattr(self, name) for name in ("mean", "std") if getattr(self, name)}
        if any(value > 1 for values in given.values() for value in values):
            if self.factory and "std" not in given:
                given["std"] = (1.0,) * len(given["mean"])
            scaled = ", ".join(
                f"`{name}: [{', '.join(f'{value / 255:.4g}' for value in values)}]`"
                for name, values in given.items()
            )
            raise ValueError(
                "`mean` and `std` are for pixels scaled to 0 to 1, and one of them is above 1, as "
                f"if for pixels of 0 to 255. Divide both by 255: {scaled}"
            )
        return self

    @classmethod
    def parse(cls, document: str | Mapping[str, Any]) -> NetworkSource:
        """Read a network's bare name, its document, or that document as JSON.

        Raises UserError where it names no network or a field is wrong.
        """
        if isinstance(document, str):
            text = document.strip()
            if not text.startswith("{"):
                return cls(network=text) if text else cls._refuse(document, "it is empty")
            try:
                document = json.loads(text)
            except json.JSONDecodeError as error:
                cls._refuse(text, f"it is not JSON: {error}")
        try:
            source = cls.model_validate(document)
        except ValidationError as error:
            cls._refuse(document, described(error, cls, document).removesuffix("."))
        if not source.network and not source.factory:
            cls._refuse(document, "it has neither `network` nor `factory`")
        return source

    def named(self, name: str) -> NetworkSource:
        """The plain source of an entry of params.yaml: `network` is its own name by default."""
        fields = {key: getattr(self, key) for key in NetworkSource.model_fields}
        if not self.factory:
            fields["network"] = self.network or name
        return NetworkSource(**fields)

    @property
    def short_name(self) -> str:
        """The network's name, without `torchvision/`, or that of the factory's function."""
        return (self.network or self.factory).rpartition("/")[2].rpartition(":")[2]

    def to_json(self) -> dict[str, Any]:
        """The document, without what is left at its default."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @staticmethod
    def _refuse(document: Any, reason: str) -> NetworkSource:
        raise UserError(
            f"the description of a network, {document!r}, is wrong: {reason}. Expected a name, or "
            'JSON like {"factory": "package.module:function", "input_shape": [3, 64, 64]}.'
        )
