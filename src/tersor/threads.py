"""Threads of one process: layers, rivals, sections and images side by side, to the same bytes whatever their number.

    with using(2):                                      # in one place, around a whole task
        ...
        for result in in_order(work, items): ...        # anywhere below: work(item), on the threads where there are any

Native kernels, torch and NumPy let go of the interpreter while they compute. Results may not depend on how many threads
there are, but those of LAPACK and OpenBLAS do when they make threads of their own: inside `using`, each call of theirs
stays on the thread that makes it, and all parallelism is that of `in_order`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch

from .errors import ConfigError

T = TypeVar("T")
R = TypeVar("R")


class _Here(threading.local):
    """The pool that this very thread may use: none in the pool's own threads, which would wait for each other."""

    pool: ThreadPoolExecutor | None = None
    ahead = 1  # tasks that are begun before the first is taken


_here = _Here()


def chosen(threads: int | None) -> int:
    """`threads`, or for None as many as torch would use: the cores of this process, the environment's OMP_NUM_THREADS,
    or what torch.set_num_threads said last. Raises ConfigError for what is no positive integer."""
    if threads is None:
        return max(1, torch.get_num_threads())
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise ConfigError(f"threads={threads!r}: give 1 or more, or None for all cores")
    return threads


@contextmanager
def using(threads: int | None = None) -> Iterator[int]:
    """`in_order` uses so many threads (see `chosen`) until the end of the block, torch and NumPy one in each."""
    count, before, outer = chosen(threads), torch.get_num_threads(), _here.pool
    torch.set_num_threads(1)
    try:
        with _one_blas_thread():
            if count == 1:
                _here.pool = None
                yield 1
                return
            with ThreadPoolExecutor(count, "tersor", initializer=torch.set_num_threads, initargs=(1,)) as pool:
                _here.pool, _here.ahead = pool, 4 * count
                yield count
    finally:
        _here.pool = outer
        torch.set_num_threads(before)


@contextmanager
def released(count: int) -> Iterator[None]:
    """Inside `using`, for code that is not tersor's: torch has so many threads of its own again."""
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(1)


def in_order(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """work(item) of each item, in the order of the items; a few are ahead of the one that is taken, so that a long one
    keeps no thread waiting. An exception of `work` is raised in its place, once what is under way has ended."""
    pool = _here.pool
    if pool is None:
        yield from map(work, items)
        return
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            if len(waiting) == _here.ahead:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, item))
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            if not future.cancel():
                future.exception()


def _one_blas_thread() -> AbstractContextManager[Any]:
    """NumPy's BLAS on the calling thread, where threadpoolctl is there to say so."""
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[Any] = threadpool_limits(1, user_api="blas")
    return limits
