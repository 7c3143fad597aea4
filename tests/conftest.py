import logging
from collections.abc import Callable

import hypothesis
import pytest
from tiny import write_tiny_dataset

# The same examples everywhere, and no verdict that hangs on how busy the machine is.
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
    """A clock that goes on by a fixed time whenever it is read."""

    def __init__(self, tick: float) -> None:
        self.now, self._tick = 0.0, tick

    def monotonic(self) -> float:
        self.now += self._tick
        return self.now


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the workflow tests first: their files take longest, and must not be left to the end."""
    items.sort(key=lambda item: "workflow" not in item.path.parts)


class Lines(logging.Handler):
    """Keeps the messages that a logger gets."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def progress_lines(monkeypatch):
    """Runs work under a clock of a given tick, and gives the lines that it reports."""

    def run(work, tick):
        from lowrank.core import progress

        lines = Lines()
        logger = logging.getLogger("lowrank.core.progress")
        monkeypatch.setattr(progress, "time", Clock(tick))
        # A handler of its own: other tests leave the handlers of steps behind.
        monkeypatch.setattr(logger, "handlers", [lines])
        monkeypatch.setattr(logger, "level", logging.INFO)
        work()
        return lines.messages

    return run


@pytest.fixture
def register_network(monkeypatch):
    """Registers a network for one test."""
    from lowrank.zoo import NetworkSpec, registry

    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))

    def add(build: Callable, name: str, input_shape=(3, 32, 32), num_classes=10) -> NetworkSpec:
        spec = NetworkSpec(name, input_shape, num_classes)
        registry.register(spec)(build)
        return spec

    return add


@pytest.fixture
def restored_torch():
    """Undoes what a step sets for its whole process."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)
