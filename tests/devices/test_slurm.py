"""Devices that are nodes of a Slurm cluster. tests/cluster measures on one."""

import pytest

from lowrank.config.device_kinds import DEVICE_KINDS, create_device
from lowrank.devices import DeviceError
from lowrank.devices.local import LocalDevice


def test_a_job_of_slurm_measures_on_its_node(monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    device = create_device("milan", {"kind": "slurm", "constraint": "milan"})
    assert isinstance(device, LocalDevice)
    assert device.describe({})["runtime"] == "onnxruntime"


def test_a_step_outside_a_job_is_refused(monkeypatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    with pytest.raises(DeviceError, match=r"'milan' is a node of a Slurm cluster.*profiles/slurm"):
        create_device("milan", {"kind": "slurm"})


@pytest.mark.parametrize(
    ("settings", "resources"),
    [
        ({"kind": "slurm"}, {}),
        ({"kind": "slurm", "constraint": "milan"}, {"constraint": "milan"}),
        (
            {"kind": "slurm", "constraint": "a", "partition": "b", "threads": 2},
            {"constraint": "a", "slurm_partition": "b"},
        ),
        ({"kind": "local", "threads": 2}, {}),
        ({"kind": "ssh", "host": "board"}, {}),
    ],
)
def test_resources_of_jobs_on_a_device(settings, resources):
    assert DEVICE_KINDS.get(settings["kind"]).job_resources(settings) == resources
