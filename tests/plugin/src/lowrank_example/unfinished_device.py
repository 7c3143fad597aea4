"""A kind of device with a mistake: a setting without a description."""

import dataclasses

from lowrank.devices import DeviceKind
from lowrank.devices.local import LocalDevice


@dataclasses.dataclass(frozen=True)
class UnfinishedSettings:
    """Settings that were not declared with `setting`."""

    volume: int = 3


UNFINISHED = DeviceKind("unfinished", "not done yet.", LocalDevice, UnfinishedSettings)
