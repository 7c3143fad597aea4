"""`benchmark`: devices, and how latency and energy are measured on them."""

from typing import Literal

from pydantic import Field, model_validator

from lowrank.settings.section import BatchSize, OneOrSeveral, OwnPath, Section, Threads


class DeviceSettings(Section):
    """A device on which networks are measured."""

    kind: Literal["local", "ssh"] = Field(
        "local",
        description="`local`: the machine that runs the step. `ssh`: another machine, reached "
        "over SSH; it needs Python 3.9 or later, NumPy and onnxruntime.",
    )
    host: str | None = Field(
        None,
        # Must not look like an option of the SSH client; see lowrank.devices.ssh.
        pattern=r"^[A-Za-z0-9_\[][A-Za-z0-9_.:@%/\[\]-]*$",
        description="Host name of the machine for the SSH client, as in ~/.ssh/config (only for "
        "`kind: ssh`).",
    )
    python: OwnPath | None = Field(
        None,
        min_length=1,
        description="Python interpreter on the other machine (only for `kind: ssh`). Default: "
        "`python3`.",
    )
    folder: OwnPath | None = Field(
        None,
        min_length=1,
        description="Folder on the other machine for the files that lowrank sends (only for "
        "`kind: ssh`). Default: ~/.cache/lowrank.",
    )
    command: str | None = Field(
        None,
        min_length=1,
        description="Command of the OpenSSH client, with options such as `-F`, `-i` and `-p` "
        "(only for `kind: ssh`). Default: `ssh`.",
    )
    threads: OneOrSeveral[Threads] = Field(
        1,
        description="Number of threads inside one operator. If this is a list, each number is "
        "measured, and targets refer to the first.",
    )
    batch_size: OneOrSeveral[BatchSize] = Field(
        1,
        description="Number of images in one run. If this is a list, each batch size is measured "
        "with each number of threads, and targets refer to the first.",
    )
    optimization: Literal["all", "extended", "basic", "none"] = Field(
        "all", description="Level of ONNX Runtime's graph optimization."
    )
    sittings: int = Field(
        5,
        ge=1,
        description="Number of processes over which a measurement is divided. The location of a "
        "model in memory affects its latency and is random, but does not change within a "
        "process.",
    )
    turn_runs: int = Field(
        10,
        ge=1,
        description="Number of consecutive runs of one model before the other model's turn. The "
        "first run of a turn finds the other model's data in the processor caches and is not "
        "counted. With 1, it is counted, as if other work ran between any two runs.",
    )
    repeats: int = Field(50, ge=2, description="Minimum number of counted runs of each model.")
    seconds: float = Field(
        2.0, gt=0, description="Minimum measuring time, in seconds, of both models together."
    )
    warmup_seconds: float = Field(
        0.5,
        ge=0,
        description="Warm-up time before the measurement, in seconds, for each model in each "
        "process. The warm-up takes up to ten times as long, until the latency is stable.",
    )
    energy_seconds: float = Field(
        5.0,
        ge=0,
        description="Time over which energy is measured, in seconds: of each model, and of the "
        "idle device before and after. Only for devices with an energy counter. 0: energy is "
        "not measured.",
    )
    provider: str = Field("CPUExecutionProvider", description="Execution provider of ONNX Runtime.")

    @model_validator(mode="after")
    def _check_kind(self) -> "DeviceSettings":
        if self.kind == "ssh" and self.host is None:
            raise ValueError("`kind: ssh` needs `host`, the host name for the SSH client")
        for name in ("host", "python", "folder", "command"):
            if self.kind != "ssh" and getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` is only for `kind: ssh`, but this device has `kind: {self.kind}`"
                )
        return self

    def to_json(self) -> str:
        """Return the settings as JSON for the steps, without those of other kinds of device."""
        return self.model_dump_json(exclude_none=True)

    def connection_json(self) -> str:
        """Return the settings that identify and reach the machine, without how it measures."""
        names = {"kind", "host", "python", "folder", "command"}
        return self.model_dump_json(exclude_none=True, include=names)
