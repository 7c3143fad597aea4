"""`benchmark`: devices, and how they measure."""

from typing import Literal

from pydantic import Field, model_validator

from lowrank.config.section import BatchSize, OneOrSeveral, OwnPath, Section, Threads


class DeviceSettings(Section):
    """A device that models are measured on."""

    kind: Literal["local", "ssh"] = Field(
        "local",
        description="`local`: the machine that runs the step; `ssh`: another one, with Python 3.9 "
        "or later, NumPy and onnxruntime.",
    )
    host: str | None = Field(
        None,
        # Never an option of the client; see lowrank.devices.ssh.
        pattern=r"^[A-Za-z0-9_\[][A-Za-z0-9_.:@%/\[\]-]*$",
        description="For `ssh`: its name for the SSH client (~/.ssh/config).",
    )
    python: OwnPath | None = Field(None, min_length=1, description="For `ssh`: Python over there.")
    folder: OwnPath | None = Field(
        None,
        min_length=1,
        description="For `ssh`: what is sent is kept below it (~/.cache/lowrank).",
    )
    command: str | None = Field(
        None,
        min_length=1,
        description="For `ssh`: the OpenSSH client (`ssh`), with `-F`, `-i`, `-p`.",
    )
    threads: OneOrSeveral[Threads] = Field(
        1,
        description="Inside an operator; of a list each is measured, the first for the targets.",
    )
    batch_size: OneOrSeveral[BatchSize] = Field(
        1, description="Images in one run; a list likewise, with each number of threads."
    )
    optimization: Literal["all", "extended", "basic", "none"] = Field(
        "all", description="Level of ONNX Runtime's graph optimisation."
    )
    sittings: int = Field(
        5,
        ge=1,
        description="Processes among which a measurement is divided: where a model lies in memory "
        "is luck that lasts as long as one.",
    )
    turn_runs: int = Field(
        10,
        ge=1,
        description="Runs of one model before the other's turn. The first finds the processor's "
        "caches full of the other and is not counted; 1: it is, as if other work ran in between.",
    )
    repeats: int = Field(50, ge=2, description="At least so many runs of each that count.")
    seconds: float = Field(2.0, gt=0, description="At least so long for both models together.")
    warmup_seconds: float = Field(
        0.5,
        ge=0,
        description="Before measuring, for each model in each sitting; up to ten times as long, "
        "until it runs evenly.",
    )
    energy_seconds: float = Field(
        5.0,
        ge=0,
        description="For counting energy, where the device has a counter: of each model, and of "
        "none before and after; 0: not counted.",
    )
    provider: str = Field("CPUExecutionProvider", description="ONNX Runtime execution provider.")

    @model_validator(mode="after")
    def _of_its_kind(self) -> "DeviceSettings":
        if self.kind == "ssh" and self.host is None:
            raise ValueError("`kind: ssh` needs `host`, the name of the machine for the SSH client")
        for name in ("host", "python", "folder", "command"):
            if self.kind != "ssh" and getattr(self, name) is not None:
                raise ValueError(f"`{name}` is for `kind: ssh`, and this device is `{self.kind}`")
        return self

    def to_json(self) -> str:
        """As the steps take it: without what belongs to other kinds."""
        return self.model_dump_json(exclude_none=True)

    def connection_json(self) -> str:
        """Which machine it is and how it is reached, without how it measures."""
        names = {"kind", "host", "python", "folder", "command"}
        return self.model_dump_json(exclude_none=True, include=names)
