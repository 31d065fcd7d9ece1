"""Threads that build batches ahead of the training step, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def prefetch(thunks: Iterable[Callable[[], Result]], depth: int, workers: int = 1) -> Iterator[Result]:
    """Yield the result of each thunk, in order, with up to `depth` results built ahead of the one in use, by `workers`
    threads. The order and the results are the same for any number of threads.

    An exception of a thunk is raised where its result would have been. Closing the iterator cancels
    thunks that have not started and waits for those that are running. `depth` 0 builds each result on demand.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(max_workers=workers, thread_name_prefix="prefetch") as pool:
        try:
            for thunk in thunks:
                pending.append(pool.submit(thunk))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
