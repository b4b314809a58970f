"""Threads for many products of small matrices: one for each product, in the place of several inside each.

OpenBLAS's own threads gain little on products of a few hundred columns and lose time on symmetric ones.
A function must not hold the interpreter's lock for long: numpy's products let it go, scipy's do not.
"""

from __future__ import annotations

import operator
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, reduce
from typing import TypeVar

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

T = TypeVar("T")
S = TypeVar("S")

# More would gain little, and each has working memory of its own.
_MOST = 8
# Sums are made in so many groups, whatever the machine: the order of adding is the same on all.
_GROUPS = 8
# Operations that BLAS takes several threads for, and those that one does in some 20 ms.
_TINY, _SMALL = 2e5, 1.5e9
# BLAS's limit is the process's: only one caller at a time may change it.
_limiting = threading.Lock()


def in_threads(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """`function` of every item, in order, on as many threads as BLAS has, each with one thread of BLAS.

    A single item keeps BLAS's own threads. Where BLAS has one, as on Dask workers, or where another thread is
    in here, items are worked on one after the other and without any thread.
    """
    items = list(items)
    if len(items) > 1 and (count := _blas_threads()) > 1 and _limiting.acquire(blocking=False):
        try:
            with _controller().limit(limits=1, user_api="blas"):
                return list(_pool(min(count, _MOST)).map(function, items))
        finally:
            _limiting.release()
    return [function(item) for item in items]


@contextmanager
def by_one_thread(flops: float) -> Iterator[None]:
    """Small products and solves that stand between passes `in_threads`, with one thread of BLAS.

    OpenBLAS's own threads wait for more of the kind, busily, for some 100 ms, in which a pass takes 1.7 times
    as long.

    Args:
        flops: how many; where they are many, or next to none, nothing is changed.
    """
    if _TINY <= flops <= _SMALL and _blas_threads() > 1 and _limiting.acquire(blocking=False):
        try:
            with _controller().limit(limits=1, user_api="blas"):
                yield
        finally:
            _limiting.release()
    else:
        yield


def sum_in_threads(
    function: Callable[[S], T], items: Iterable[S], add: Callable[[T, T], T] = operator.add
) -> T:
    """The sum of `function` of every item, one at least, with few values in memory at a time."""
    items = list(items)
    groups = min(_GROUPS, len(items))

    def of_group(group: int) -> T:
        return reduce(add, map(function, items[group::groups]))

    return reduce(add, in_threads(of_group, range(groups)))


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="influence-batch")


# A forked process has the pool without its threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)


def _blas_threads() -> int:
    """The most that one of the loaded BLAS libraries would use."""
    libraries = _controller().select(user_api="blas").info()
    return max((int(library["num_threads"]) for library in libraries), default=1)
