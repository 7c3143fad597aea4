"""Work done ahead of its use by threads, in order and by a bounded amount."""

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

    Up to `threads` calls run at once, and at most `threads + 1` of them are running or finished
    ahead of what was yielded: memory stays bounded. What a call raises is raised where its result
    would have come. No thread outlives the generator.

    Parameters
    ----------
    function : callable
        Called in threads. Results are independent of `threads` when it is a pure function.
    items : iterable
        What to call it with.
    threads : int
        How many calls run at once.

    Yields
    ------
    The results, in order.
    """
    upcoming = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix=function.__name__) as pool:
        ahead: deque[Future[Result]] = deque(
            pool.submit(function, item) for item in islice(upcoming, threads + 1)
        )
        while ahead:
            result = ahead.popleft().result()
            ahead.extend(pool.submit(function, item) for item in islice(upcoming, 1))
            yield result
