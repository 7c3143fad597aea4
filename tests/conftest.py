"""Fixtures for all tests."""

import logging
from collections.abc import Callable, Iterator

import hypothesis
import pytest
from tiny import write_tiny_dataset

# Reproducible examples, and no time limits that depend on the load of the machine.
hypothesis.settings.register_profile("steady", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("steady")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("datasets") / "tiny"
    write_tiny_dataset(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tiny_folder):
    from lowrank.data.datasets import open_dataset

    return open_dataset(tiny_folder)


class Clock:
    """A clock that advances by a fixed time whenever it is read."""

    def __init__(self, tick: float) -> None:
        self.now, self._tick = 0.0, tick

    def monotonic(self) -> float:
        self.now += self._tick
        return self.now


@pytest.hookimpl(wrapper=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> Iterator[None]:
    """Put the workflow tests first, because their files take the longest time.

    One process builds the project that many of them copy. The others start with files that do not
    need it, instead of waiting for it.
    """
    for item in items:
        if "workflow" in item.path.parts:
            item.add_marker(pytest.mark.seconds)
    yield  # Here, pytest removes the tests that `-m` does not select.
    building = {item.path for item in items if "built_once" in getattr(item, "fixturenames", ())}
    first = min(building, default=None)

    def position(item: pytest.Item) -> int:
        if "workflow" not in item.path.parts:
            return 3
        return 0 if item.path == first else 2 if item.path in building else 1

    items.sort(key=position)


class Lines(logging.Handler):
    """A handler that keeps the messages of a logger."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def progress_lines(monkeypatch):
    """Return a function that runs work with a simulated clock and returns its progress lines."""

    def run(work, tick):
        from lowrank.core import progress

        lines = Lines()
        logger = logging.getLogger("lowrank.core.progress")
        monkeypatch.setattr(progress, "time", Clock(tick))
        # Use a separate handler, because other tests may have left handlers of steps.
        monkeypatch.setattr(logger, "handlers", [lines])
        monkeypatch.setattr(logger, "level", logging.INFO)
        work()
        return lines.messages

    return run


@pytest.fixture
def register_network(monkeypatch):
    """Return a function that registers a network for the duration of a test."""
    from lowrank.zoo import NetworkSpec, registry

    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    def add(build: Callable, name: str, input_shape=(3, 32, 32), num_classes=10) -> NetworkSpec:
        spec = NetworkSpec(name, input_shape, num_classes)
        registry.register(spec)(build)
        return spec

    return add


@pytest.fixture
def restored_torch():
    """Restore the settings of PyTorch that steps change for the whole process."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
