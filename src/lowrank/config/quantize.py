"""`quantize`: quantization to int8."""

from typing import Literal

from pydantic import Field

from lowrank.settings.section import Section, Threads


class QuantizeSettings(Section):
    """8-bit weights and activations by ONNX Runtime, for methods with `quantize`."""

    chooses = ("calibration",)

    images: int = Field(
        500,
        ge=1,
        description="Number of calibration images on which the ranges of the activations are "
        "measured. Their labels are not used.",
    )
    calibration: Literal["minmax", "entropy", "percentile"] = Field(
        "minmax",
        description="Range of the activations. `minmax`: all values. `entropy`: the range with "
        "the smallest divergence. `percentile`: the range of `percentile` percent of the "
        "values.",
    )
    percentile: float = Field(
        99.99,
        gt=50,
        le=100,
        description="For `calibration: percentile`: share of the activations inside the range, in "
        "percent.",
    )
    activations: Literal["auto", "int8", "uint8"] = Field(
        "auto",
        description="Type of the activations. `auto`: the type for which each device has integer "
        "kernels, int8 on ARM and uint8 elsewhere.",
    )
    reduce_range: Literal["auto"] | bool = Field(
        "auto",
        description="Quantize weights to 7 bits. `auto`: only for x86 processors without VNNI, "
        "because their sums of 8-bit products saturate.",
    )
    tolerance: float = Field(
        0.3,
        ge=0,
        le=100,
        description="Largest drop of the task's metric from int8 on the validation images, in its "
        "unit: percentage points for classification. If int8 loses more, the most sensitive layers "
        "stay in float until the drop is within this limit.",
    )
    sensitivity_images: int = Field(
        500,
        ge=1,
        description="Number of validation images on which the sensitivity of layers is measured.",
    )
    search_seconds: float = Field(
        300.0,
        ge=0,
        description="Time limit of the search for sensitive layers, in seconds for each file. The "
        "best file found in this time is kept. 0: no search.",
    )
    by_time: bool = Field(
        True,
        description="Keep nodes in float that are slower in int8, as measured on the device. The "
        "measurement is stored in `times.json` next to the network.",
    )
    threads: Threads = 2
