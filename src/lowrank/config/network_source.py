"""The source of a network: a name, or a function of the user. This module imports no PyTorch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from lowrank.errors import UserError
from lowrank.settings.mistakes import described

_Pixels = Annotated[int, Field(ge=1, le=65536)]


class NetworkSource(BaseModel):
    """The instructions for building a network, and the input images that its weights expect.

    This document is stored in params.yaml under `checkpoint.<model>`, on the command line of steps
    as JSON, and in the header of every state file. Each step can rebuild the network from it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    network: str | None = Field(
        None,
        min_length=1,
        description="Name of a network that lowrank ships, or of any torchvision classifier, such "
        "as `resnet50`. Write `torchvision/vgg16` if lowrank has a network with the same name, "
        "and `timm/resnet18.a1_in1k` for a network of timm, with the tag of its weights. "
        "Default: the name of this entry.",
    )
    factory: str | None = Field(
        None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$",
        description="Function that builds your own network, as `package.module:function`. It "
        "returns a torch.nn.Module and is imported with the current folder on the path.",
    )
    onnx: str | None = Field(
        None,
        pattern=r"^[^-\x00-\x1f\x7f][^\x00-\x1f\x7f]*\.onnx$",
        description="Path of an ONNX file: the network with its weights. Factors replace its "
        "layers, and everything else in the file stays as it is.",
    )
    inputs: dict[str, tuple[Annotated[int, Field(ge=1)], ...]] | None = Field(
        None,
        description="For `onnx`: shape of each input for one sample, with the batch axis, by its "
        "name, such as `{x: [1, 3, 48, 320]}`. Needed where the file leaves sizes open.",
    )
    layout: Literal["nchw", "nhwc"] | None = Field(
        None,
        description="For `onnx`: order of the axes of an input of images. Default: nhwc if the "
        "last axis has 1 or 3 entries and the second axis has not, else nchw.",
    )
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="Arguments for the function that builds the network."
    )
    torchvision_weights: str | None = Field(
        None,
        description="Torchvision's name for the weights of a torchvision network, such as "
        "IMAGENET1K_V2. Their preprocessing is used. Default: the weights that torchvision "
        "names as the best.",
    )
    input_shape: tuple[Annotated[int, Field(ge=1)], ...] | None = Field(
        None,
        min_length=1,
        description="Shape of one image: channels, height, width. Required for a `factory`. A "
        "`factory` may also take an input with another number of axes; this is the shape of one "
        "sample, without the batch axis.",
    )
    input_type: Literal["float32", "int64", "int32", "int16", "int8", "uint8", "bool"] | None = (
        Field(
            None,
            description="For a `factory`: type of its input, such as int64 for numbers of tokens. "
            "Default: float32.",
        )
    )
    mean: tuple[float, ...] | None = Field(
        None,
        description="Mean of each channel, for pixels scaled to [0, 1]; no value is above 1. "
        "Default: the network's own mean; 0 for a `factory`.",
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None,
        description="Standard deviation of each channel, for pixels scaled to [0, 1]. Default: "
        "the network's own; 1 for a `factory`.",
    )
    resize: _Pixels | None = Field(
        None,
        description="The shorter side of an image is resized to this many pixels; then its center "
        "is cropped to `input_shape`. Default: the network's own value. If `input_shape` is "
        "given or the network has no value, images are resized to just cover `input_shape`.",
    )
    interpolation: Literal["bilinear", "bicubic"] | None = Field(
        None,
        description="Interpolation for resizing. Default: the network's own; bilinear for a "
        "`factory`.",
    )
    channel_order: Literal["rgb", "bgr"] | None = Field(
        None,
        description="Order of the color channels. Default: the network's own; rgb for a `factory`.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> NetworkSource:
        sources = ("network", "factory", "onnx")
        given = [f"`{name}`" for name in sources if getattr(self, name)]
        if len(given) > 1:
            raise ValueError(f"give one of {' and '.join(given)}, not both")
        for name in ("inputs", "layout"):
            if getattr(self, name) and not self.onnx:
                raise ValueError(
                    f"`{name}` is only for a network from an ONNX file, `onnx`. Export a PyTorch "
                    "network with several inputs by `torch.onnx.export`"
                )
        if self.onnx and (self.input_shape or self.arguments or self.torchvision_weights):
            raise ValueError(
                "`input_shape`, `arguments` and `torchvision_weights` are not for an ONNX file; "
                "give `inputs` if the file leaves sizes open"
            )
        if self.input_type and not self.factory:
            raise ValueError("`input_type` is only for a `factory`")
        if self.input_shape and len(self.input_shape) != 3 and not self.factory:
            raise ValueError(
                f"`input_shape` has {len(self.input_shape)} sizes; expected three: channels, "
                "height, width. Only a `factory` takes other inputs than images"
            )
        if self.factory and not self.input_shape:
            raise ValueError(
                "a `factory` needs `input_shape`: channels, height, width of one image, or the "
                "shape of one sample of another input"
            )
        if self.factory and self.torchvision_weights:
            raise ValueError("`torchvision_weights` is only for networks of torchvision")
        return self

    @model_validator(mode="after")
    def _check_scaled_pixels(self) -> NetworkSource:
        """Reject `mean` and `std` for pixels from 0 to 255, which would make every image wrong."""
        statistics = {name: getattr(self, name) for name in ("mean", "std") if getattr(self, name)}
        if any(value > 1 for values in statistics.values() for value in values):
            if (self.factory or self.onnx) and "std" not in statistics:
                statistics["std"] = (1.0,) * len(statistics["mean"])
            scaled = ", ".join(
                f"`{name}: [{', '.join(f'{value / 255:.4g}' for value in values)}]`"
                for name, values in statistics.items()
            )
            raise ValueError(
                "`mean` and `std` must be for pixels scaled to [0, 1], but a value is above 1, as "
                f"if for pixels from 0 to 255. Divide both by 255: {scaled}"
            )
        return self

    @classmethod
    def parse(cls, document: str | Mapping[str, Any]) -> NetworkSource:
        """Read the name of a network, its document, or its document as JSON.

        Raises UserError if no network is named or a field is wrong.
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
        if not source.label:
            cls._refuse(document, "it has none of `network`, `factory` and `onnx`")
        return source

    def named(self, name: str) -> NetworkSource:
        """Return the source of an entry of params.yaml; `network` defaults to the entry's name."""
        fields = {key: getattr(self, key) for key in NetworkSource.model_fields}
        if not self.factory and not self.onnx:
            fields["network"] = self.network or name
        return NetworkSource(**fields)

    @property
    def takes_images(self) -> bool:
        """Whether the input of a `factory` is a batch of images: three axes of float32."""
        is_float = self.input_type in (None, "float32")
        return is_float and self.input_shape is not None and len(self.input_shape) == 3

    @property
    def short_name(self) -> str:
        """Name of the network without `torchvision/`, of the factory's function, or of the file."""
        return self.label.rpartition("/")[2].rpartition(":")[2].removesuffix(".onnx")

    @property
    def label(self) -> str:
        """Name of the network, `module:function` of the factory, or path of the ONNX file."""
        return self.network or self.factory or self.onnx or ""

    def to_json(self) -> dict[str, Any]:
        """Return the document without settings at their default."""
        return self.model_dump(mode="json", exclude_defaults=True)

    @staticmethod
    def _refuse(document: Any, reason: str) -> NetworkSource:
        raise UserError(
            f"the description of a network, {document!r}, is wrong: {reason}. Expected a name, "
            'or JSON such as {"factory": "package.module:function", "input_shape": [3, 64, 64]}.'
        )
