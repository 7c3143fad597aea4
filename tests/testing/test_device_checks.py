"""The checks of devices find what is wrong with a broken one."""

from pathlib import Path

import pytest

from lowrank.devices import DeviceError
from lowrank.devices.local import LocalDevice
from lowrank.testing import check_device


class UntidyDevice(LocalDevice):
    """A device that measures the wrong things and leaves files behind."""

    def measure(self, original, compressed, settings):
        measured = super().measure(compressed, original, settings)
        Path("measured.txt").touch()
        measured["memory_mb"] = {name: 1e6 * value for name, value in measured["memory_mb"].items()}
        measured["environment"]["path"] = str(original)
        measured["energy_mj"] = {"original": None, "compressed": None}
        del measured["conditions"]["warning"]
        return measured

    def node_times(self, model, settings):
        nodes = super().node_times(model, settings)
        return {f"node {number}": node for number, node in enumerate(nodes.values())}

    def outputs(self, model, settings):
        return super().outputs(model, {**settings, "batch_size": 1})

    def answers(self, model, images, settings):
        if not Path(model).exists():
            return []
        try:
            return super().answers(model, images, {**settings, "batch_size": 1})
        except DeviceError:
            raise ValueError("no good") from None

    def environment(self, settings):
        return super().environment({**settings, "threads": 1} if "speed" not in settings else {})

    def describe(self, settings):
        return {"cpu": "fast"}

    def lacks_int8(self, model, settings):
        return "it is old"

    def clean(self):
        return {"folder": "nowhere", "removed": 0, "stay": []}


EXPECTED = [
    "measurement: measure(...)['conditions'] has no warning; found",
    "measurement: measure(...)['environment'] is {",
    "ratios: `speedup` is 0.",
    "units: `memory_mb` of 'original' is ",
    "energy: `energy_mj` is {'original': None, 'compressed': None}; expected `not_measured` with",
    "document: measure(...) has a path of a model; expected a measurement without paths.",
    "noise: outputs(model, {'batch_size': 3}) has the shape (1, 5); expected (3, 5).",
    "images: answers(model, 5 images, {'batch_size': 2}) has the shape (5, 5); expected (4, 5).",
    "nodes: node_times(...) has no conv, gemm; found node 0",
    "int8: lacks_int8(...) of a model in float is 'it is old'; expected None.",
    "description: describe(...) has no ",
    "environment: environment({'threads': 2}) has 1 threads; expected 2",
    "errors: answers(...) of a missing model returns []; expected a DeviceError.",
    "errors: answers(...) of a damaged model raises ValueError: no good; expected a DeviceError.",
    "errors: environment({'speed': 1}) returns {",
    "nothing_left: the current folder has new files: measured.txt; expected none.",
    "cleaning: clean() after a measurement has removed 0 files; expected those that were sent.",
]


@pytest.mark.seconds
def test_everything_that_is_wrong_with_a_device_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError) as error:
        check_device(UntidyDevice("attic", {}))
    first, *lines = str(error.value).splitlines()
    assert first == "device 'attic' breaks its contract:"
    unseen = [text for text in EXPECTED if not any(line.startswith(text) for line in lines)]
    assert not unseen, "\n".join(lines)
