"""Run the named checks of a contract, and report everything that is wrong in one error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

Sample = TypeVar("Sample")
# A check yields a text, without a full stop, for each thing that is wrong.
Check = Callable[[Sample], Iterator[str]]


def require(
    subject: str,
    checks: Mapping[str, Check[Sample]],
    sample: Sample,
    expected_failures: Mapping[str, str] | None = None,
) -> None:
    """Run all checks on a sample.

    Parameters
    ----------
    subject
        What is checked, for the error, such as "device 'board'".
    checks
        The checks by name.
    sample
        Argument of each check.
    expected_failures
        Names of checks that must fail, with the reason why that is accepted.

    Raises
    ------
    AssertionError
        With a line for each thing that is wrong: an exception counts, and so does a check that is
        expected to fail and passes.
    ValueError
        If `expected_failures` names an unknown check.
    """
    expected = expected_failures or {}
    if unknown := expected.keys() - checks.keys():
        raise ValueError(
            f"expected_failures: no check is named {', '.join(sorted(unknown))}. Names: "
            f"{', '.join(checks)}."
        )
    problems = []
    for name, check in checks.items():
        found: list[str] = []
        try:
            found.extend(check(sample))
        except Exception as error:  # What is checked is the code of another package.
            found.append(f"{type(error).__name__}: {error}; expected no error")
        if name in expected:
            passed = f"passed, but is expected to fail: {expected[name]}. Remove the exception"
            found = [] if found else [passed]
        problems += [f"{name}: {problem}." for problem in found]
    if problems:
        raise AssertionError("\n".join([f"{subject} breaks its contract:", *problems]))
