"""Sections of single steps: ranks, calibration, decomposition, stored outputs and export."""

from typing import Literal

from pydantic import Field

from lowrank.settings.section import Device, MeasuringDevice, Precision, Section, Threads


class SelectRanksSettings(Section):
    """Settings of the step that selects ranks, not of the rank rule."""

    threads: Threads = 1
    device: MeasuringDevice = "cpu"


class CalibrateSettings(Section):
    """Settings of the step that measures layer inputs on training images (`norm: activation`)."""

    threads: Threads = 2
    device: MeasuringDevice = "cpu"


class DecomposeSettings(Section):
    """Settings of the decomposition of layers."""

    threads: Threads = 1
    jobs: Literal["layer", "round"] = Field(
        "layer",
        description="`layer`: each layer is a job. `round`: all layers of a round are one job, "
        "which starts faster and keeps large studies small.",
    )
    layers_at_once: int = Field(
        4,
        ge=1,
        le=1024,
        description="For `jobs: round`: layers that are decomposed at the same time, each with "
        "`threads`. A run on one machine uses no more than its cores.",
    )


class TeacherOutputsSettings(Section):
    """Outputs of the original network for the training images, stored for `distill`."""

    mirrored: bool = Field(
        False,
        description="Also store the outputs for mirrored images, for `augment.flip`. This doubles "
        "the time and the disk space.",
    )
    maps: int = Field(
        2,
        ge=0,
        le=100,
        description="Number of feature maps stored next to the logits. The deepest maps are "
        "stored, reduced to at most 4 x 4 pixels.",
    )
    maps_mebibytes: int = Field(
        1024,
        ge=1,
        description="Disk space for the feature maps of all training images, in MiB. Fewer maps "
        "are stored if they would need more.",
    )
    precision: Precision = "auto"
    device: Device = "auto"
    threads: Threads = 2


class ExportSettings(Section):
    """Export of the ONNX file, and its comparison with PyTorch on real images."""

    threads: Threads = 2
    batch: Literal["open", "fixed"] = Field(
        "open",
        description="Batch axis of the files. `open`: any batch size. `fixed`: each delivered file "
        "has a twin with a batch axis of fixed size, which some kernels for ARM need, and "
        "latencies are measured with such twins. The size is the first `batch_size` of the first "
        "device in `matrix.devices`.",
    )
    images: int = Field(
        2000,
        gt=0,
        description="Number of test images on which the logits of ONNX Runtime and PyTorch are "
        "compared.",
    )
