"""The cache of measured layers."""

from concurrent.futures import ThreadPoolExecutor

from lowrank.config.device_kinds import create_device
from lowrank.files import read_json
from lowrank.onnx_files.forms import Form
from lowrank.onnx_files.layer_latencies import MeasuredLayers, remember


def key_of(tmp_path, **changes):
    """Return the cache key of measurements with some settings."""
    settings = {"threads": 1, "batch_size": 1} | changes
    device = create_device("local", settings)
    return MeasuredLayers(device, settings, Form(None, None), tmp_path / "cache.json")._key


def test_the_key_contains_everything_that_affects_times(tmp_path):
    """Optimization level, number of threads and batch size affect the times."""
    keys = {
        key_of(tmp_path),
        key_of(tmp_path, optimization="none"),
        key_of(tmp_path, threads=2),
        key_of(tmp_path, batch_size=4),
    }
    assert len(keys) == 4
    assert all("vnni" in key and "cpu" in key and "runtime_version" in key for key in keys)


def test_jobs_can_add_measurements_at_the_same_time(tmp_path):
    path = tmp_path / "latencies/local.json"

    def add(number: int) -> None:
        remember(path, f"key {number % 3}", {f"layer {number}": float(number)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(60)))
    known = read_json(path)
    assert set(known) == {"key 0", "key 1", "key 2"}
    times = {name: ms for entries in known.values() for name, ms in entries.items()}
    assert times == {f"layer {number}": float(number) for number in range(60)}
