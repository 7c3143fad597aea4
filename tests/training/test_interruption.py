import signal
import threading

import pytest

from lowrank.training.interruption import Interruption


class EndedError(Exception):
    pass


@pytest.fixture
def ending_signal():
    """SIGTERM, whose handler raises EndedError."""

    def end(*_):
        raise EndedError

    previous_handler = signal.signal(signal.SIGTERM, end)
    yield signal.SIGTERM
    signal.signal(signal.SIGTERM, previous_handler)


def test_signal_waits_until_it_is_delivered(ending_signal):
    with Interruption() as interruption:
        assert interruption.arrived is None
        signal.raise_signal(ending_signal)
        assert interruption.arrived is ending_signal
        with pytest.raises(EndedError):
            interruption.deliver()


def test_second_signal_has_its_effect_at_once(ending_signal):
    with Interruption():
        signal.raise_signal(ending_signal)
        with pytest.raises(EndedError):
            signal.raise_signal(ending_signal)


def test_one_of_several_processes_ignores_a_second_signal(ending_signal):
    with Interruption(ignores_second=True) as interruption:
        for _ in range(2):
            signal.raise_signal(ending_signal)
        with pytest.raises(EndedError):
            interruption.deliver()


def test_signal_of_another_process_is_delivered(ending_signal):
    with Interruption(ignores_second=True) as interruption, pytest.raises(EndedError):
        interruption.deliver()


def test_handlers_are_restored_after_the_block(ending_signal):
    handler = signal.getsignal(ending_signal)
    with Interruption() as interruption:
        assert signal.getsignal(ending_signal) is not handler
        assert interruption.arrived is None
    assert signal.getsignal(ending_signal) is handler


def test_other_threads_keep_the_handlers(ending_signal):
    handlers = []

    def enter():
        with Interruption():
            handlers.append(signal.getsignal(ending_signal))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [signal.getsignal(ending_signal)]
