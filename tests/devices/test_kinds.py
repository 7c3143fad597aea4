"""Kinds of device, and the settings that they declare."""

import dataclasses
import re
from pathlib import Path

import pytest

from lowrank.config.device_kinds import DEVICE_KINDS
from lowrank.devices import DeviceError, DeviceKind, MeasureSettings, setting
from lowrank.devices.local import LocalDevice
from lowrank.devices.measure_settings import check_settings

DOCS = Path(__file__).parents[2] / "docs"


def kind_of(settings):
    return DeviceKind("new", "a new device.", LocalDevice, settings)


def test_the_kinds_of_this_package():
    assert DEVICE_KINDS.names() == ["local", "slurm", "ssh"]
    local, slurm, ssh = map(DEVICE_KINDS.get, ("local", "slurm", "ssh"))
    assert (local.measures_here, slurm.measures_here, ssh.measures_here) == (True, False, False)
    assert (local.sends_files, slurm.sends_files, ssh.sends_files) == (False, False, True)
    assert local.own_names == []
    assert ssh.own_names == ["host", "python", "folder", "command"]


def documented(page: str, heading: str) -> dict[str, str]:
    """Return the last column of the first table below a heading, by the names in the first."""
    section = (DOCS / page).read_text().partition(heading)[2].partition("\n## ")[0]
    table = re.search(r"(^\|.*\n)+", section, re.MULTILINE).group()
    return {
        name: cells[-1].strip()
        for cells in (line.strip("|\n").split("|") for line in table.splitlines()[2:])
        for name in re.findall(r"`(\w+)`", cells[0])
    }


@pytest.mark.parametrize(
    ("kind", "heading"), [("ssh", "## A machine behind SSH"), ("slurm", "## A node of a cluster")]
)
def test_the_pages_list_the_settings_of_a_kind_with_their_defaults(kind, heading):
    assert documented("devices.md", heading) == {
        field.name: "required" if field.default is dataclasses.MISSING else f"`{field.default}`"
        for field in dataclasses.fields(DEVICE_KINDS.get(kind).settings)
    }


def test_the_pages_list_the_settings_of_each_kind():
    page = (DOCS / "devices.md").read_text()
    assert [name for name in DEVICE_KINDS if f"`kind: {name}`" not in page] == []
    assert documented("measurement.md", "### Settings") == {
        name: str(default) for name, default in dataclasses.asdict(MeasureSettings()).items()
    }


@dataclasses.dataclass(frozen=True)
class _Undescribed:
    speed: int = 3


@dataclasses.dataclass(frozen=True)
class _Taken:
    threads: int = setting("Threads.", default=1)


@pytest.mark.parametrize(
    ("kind", "mistake"),
    [
        (kind_of(_Undescribed), "has a setting `speed` without a description; expected a field"),
        (kind_of(_Taken), "has a setting `threads`, which every device has; expected another"),
        (kind_of(dict), "has the settings <class 'dict'>; expected a dataclass"),
        (DeviceKind("new", "a new device.", "device"), "has the `create_device` 'device'; expect"),
    ],
)
def test_a_mistake_in_a_kind_is_described(kind, mistake):
    assert kind.mistake().startswith(mistake)


@dataclasses.dataclass(frozen=True)
class _Limited:
    volts: float = setting("Supply voltage, in V.", default=5.0, gt=0, lt=12)
    mode: str = setting("Mode.", default="fast", choices=("fast", "slow"))
    port: str = setting("Serial port of the board.", default="a1", pattern="[a-z][0-9]")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"volts": 12}, "'volts' is 12; it must be a number above 0 and below 12"),
        ({"volts": True}, "'volts' is True; it must be a number"),
        ({"mode": "slower"}, "'mode' is 'slower'; it must be one of fast, slow"),
        ({"port": "a1\n"}, r"'port' is 'a1\\n'; it must be the serial port of the board"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_expected(entries, message):
    with pytest.raises(DeviceError, match=f"^board setting {message}"):
        check_settings(_Limited(**entries), "board")


def test_right_values_are_accepted():
    assert kind_of(_Limited).mistake() is None
    check_settings(_Limited(), "board")
    check_settings(_Limited(volts=11.9, mode="slow", port="z9"), "board")
