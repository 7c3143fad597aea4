"""What is remembered of measured layers."""

from concurrent.futures import ThreadPoolExecutor

from lowrank.devices import create_device
from lowrank.files import read_json
from lowrank.steps.profile_layers import _Measured, remember
from lowrank.steps.profiling import Form


def place(tmp_path, **settings):
    """Where the measurements by some settings are remembered."""
    asked = {"threads": 1, "batch_size": 1} | settings
    device = create_device("local", asked)
    return _Measured(device, asked, Form(None, None), tmp_path / "cache.json")._where


def test_what_changes_a_time_is_in_the_key(tmp_path):
    """Other kernels, another number of threads and another batch take other times."""
    keys = {
        place(tmp_path),
        place(tmp_path, optimization="none"),
        place(tmp_path, threads=2),
        place(tmp_path, batch_size=4),
    }
    assert len(keys) == 4
    assert all("vnni" in key and "cpu" in key and "runtime_version" in key for key in keys)


def test_jobs_that_add_at_the_same_time_lose_nothing(tmp_path):
    path = tmp_path / "latencies/local.json"

    def add(number: int) -> None:
        remember(path, f"place {number % 3}", {f"layer {number}": float(number)})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(60)))
    known = read_json(path)
    assert set(known) == {"place 0", "place 1", "place 2"}
    found = {name: ms for each in known.values() for name, ms in each.items()}
    assert found == {f"layer {number}": float(number) for number in range(60)}
