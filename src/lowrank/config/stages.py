"""Sections of single steps: threads, calibration, stored outputs of the original, export."""

from pydantic import Field

from lowrank.config.section import Device, Precision, Section, Threads


class SelectRanksSettings(Section):
    """Of the step, not of the rule."""

    threads: Threads = 1


class CalibrateSettings(Section):
    """Of the layers' inputs on training images, for `norm: activation`."""

    threads: Threads = 2


class DecomposeSettings(Section):
    """Of each layer's job; the jobs run side by side under --cores."""

    threads: Threads = 1


class TeacherOutputsSettings(Section):
    """Of the original's outputs for the training images, for `distill`."""

    mirrored: bool = Field(
        False,
        description="Also for the mirrored images, for `augment.flip`: twice the time and room.",
    )
    maps: int = Field(
        2,
        ge=0,
        le=100,
        description="Feature maps stored beside the logits, the deepest, at most 4 x 4 pixels.",
    )
    maps_mebibytes: int = Field(
        1024, ge=1, description="Room for those of all training images; fewer maps where less."
    )
    precision: Precision = "auto"
    device: Device = "auto"
    threads: Threads = 2


class ExportSettings(Section):
    """Of the ONNX file, and of its check against PyTorch on real images."""

    threads: Threads = 2
    images: int = Field(
        2000, gt=0, description="Images of the test split that both run, to compare their logits."
    )
