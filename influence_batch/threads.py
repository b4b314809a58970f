"""Threads for many products of small matrices: one for each product, in the place of several inside each.

OpenBLAS's own threads gain little on products of a few hundred columns and lose time on symmetric ones.
A function must not hold the interpreter's lock for long: numpy's products let it go, scipy's do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

T = TypeVar("T")
S = TypeVar("S")


def in_threads(function: Callable[[S], T], items: Iterable[S]) -> list[T]:
    """`function` of every item, in order, on as many threads as BLAS has, each with one thread of BLAS.

    Where BLAS has one, as on Dask workers, one after the other and without any thread.
    """
    count = _blas_threads()
    if count == 1:
        return [function(item) for item in items]
    with _controller().limit(limits=1, user_api="blas"):
        return list(_pool(count).map(function, items))


@cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, thread_name_prefix="influence-batch")


def _blas_threads() -> int:
    """The most that one of the loaded BLAS libraries would use: 1 inside a function of `in_threads`."""
    libraries = _controller().select(user_api="blas").info()
    return max((int(library["num_threads"]) for library in libraries), default=1)
