"""Compute results ahead of their use in threads, in order and with bounded memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_background(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result, None, None]:
    """Yield `function(item)` for each item, in the order of the items.

    Up to `threads` calls run at the same time. At most `threads + 1` calls are running or finished
    before their results are yielded, so memory is bounded. If a call raises an exception, the
    generator raises it in place of the result. All threads end with the generator.

    Parameters
    ----------
    function : callable
        Function that is called in threads. If it is a pure function, results do not depend on
        `threads`.
    items : iterable
        Arguments of the calls.
    threads : int
        Number of calls that run at the same time.

    Yields
    ------
    The results, in order.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix=function.__name__) as pool:
        pending: deque[Future[Result]] = deque(
            pool.submit(function, item) for item in islice(remaining, threads + 1)
        )
        while pending:
            result = pending.popleft().result()
            pending.extend(pool.submit(function, item) for item in islice(remaining, 1))
            yield result
