"""The loop over the checks of a contract."""

import pytest

from lowrank.testing.contract import require

CHECKS = {
    "even": lambda number: iter([] if number % 2 == 0 else [f"{number} is odd; expected even"]),
    "small": lambda number: iter([] if number < 10 else [f"{number} is large; expected below 10"]),
    "root": lambda number: iter([f"{number}"] if number**0.5 < 0 else []),
}


def test_what_keeps_its_contract_passes():
    require("number 4", CHECKS, 4)


def test_all_that_is_wrong_is_reported_at_once():
    with pytest.raises(AssertionError) as error:
        require("number 11", CHECKS, 11)
    assert str(error.value).splitlines() == [
        "number 11 breaks its contract:",
        "even: 11 is odd; expected even.",
        "small: 11 is large; expected below 10.",
    ]


def test_an_exception_is_reported_as_a_failed_check():
    with pytest.raises(AssertionError, match=r"root: TypeError: .*complex.*; expected no error\."):
        require("number -4", CHECKS, -4)


def test_a_known_failure_with_its_reason_is_accepted_as_long_as_it_fails():
    require("number 7", CHECKS, 7, {"even": "all primes but 2 are odd"})
    with pytest.raises(AssertionError, match="even: passed, but is expected to fail: all primes"):
        require("number 2", CHECKS, 2, {"even": "all primes but 2 are odd"})


def test_an_unknown_name_of_a_known_failure_is_an_error():
    with pytest.raises(ValueError, match=r"no check is named evn\. Names: even, small, root"):
        require("number 7", CHECKS, 7, {"evn": "a typing mistake"})
