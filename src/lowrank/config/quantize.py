"""`quantize`: int8 networks."""

from typing import Literal

from pydantic import Field

from lowrank.config.section import Section, Threads


class QuantizeSettings(Section):
    """Of methods with `quantize`: 8-bit weights and activations, by ONNX Runtime."""

    chooses = ("calibration",)

    images: int = Field(
        500, ge=1, description="Training images that show how large activations are; no labels."
    )
    calibration: Literal["minmax", "entropy", "percentile"] = Field(
        "minmax",
        description="What of the activations is kept: all, the range of least divergence, or "
        "`percentile` of them.",
    )
    percentile: float = Field(99.99, gt=50, le=100, description="For `percentile`: per cent.")
    activations: Literal["auto", "int8", "uint8"] = Field(
        "auto",
        description="Type of the activations. `auto`: what each device runs in integer kernels, "
        "int8 on ARM and uint8 elsewhere.",
    )
    reduce_range: Literal["auto"] | bool = Field(
        "auto",
        description="Weights of 7 bits. `auto`: for x86 processors without VNNI, whose sums of 8 "
        "bits saturate.",
    )
    tolerance: float = Field(
        0.3,
        ge=0,
        le=100,
        description="Points of validation accuracy. Where int8 loses more, the most sensitive "
        "layers stay in float until it does not.",
    )
    sensitivity_images: int = Field(
        500, ge=1, description="Validation images on which that is measured."
    )
    search_seconds: float = Field(
        300.0,
        ge=0,
        description="How long the search for them may take, for each file; the best file so far "
        "stays. 0: none.",
    )
    by_time: bool = Field(
        True,
        description="Whether nodes that are slower in int8 than in float, by the clock of the "
        "device, stay in float. `times.json` beside the file holds the measurement.",
    )
    threads: Threads = 2
