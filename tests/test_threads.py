"""Threads of work with one thread of BLAS each."""

from __future__ import annotations

import threading

import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from influence_batch.threads import by_one_thread, in_threads


def _blas_threads() -> int:
    return max(library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas")


def test_as_many_threads_as_blas_has() -> None:
    both = threading.Barrier(2, timeout=20)

    def inside(item: int) -> tuple[int, int]:
        both.wait()  # passes only where two run at a time
        return item, _blas_threads()

    with threadpool_limits(limits=2, user_api="blas"):
        assert in_threads(inside, range(4)) == [(item, 1) for item in range(4)]
        assert _blas_threads() == 2


def test_no_thread_where_blas_has_one() -> None:
    with threadpool_limits(limits=1, user_api="blas"):
        names = in_threads(lambda item: threading.current_thread().name, range(3))
    assert names == [threading.current_thread().name] * 3


def test_an_error_reaches_the_caller() -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        with pytest.raises(ZeroDivisionError):
            in_threads(lambda item: 1 // item, [2, 1, 0])
        assert _blas_threads() == 2


@pytest.mark.parametrize(("flops", "threads"), [(1e3, 2), (1e7, 1), (1e12, 2)])
def test_small_products_take_one_thread_of_blas(flops: float, threads: int) -> None:
    with threadpool_limits(limits=2, user_api="blas"):
        with by_one_thread(flops):
            assert _blas_threads() == threads
            with by_one_thread(flops):
                assert _blas_threads() == threads
            assert in_threads(lambda item: -item, range(3)) == [0, -1, -2]
        assert _blas_threads() == 2
        with pytest.raises(ZeroDivisionError), by_one_thread(flops):
            raise ZeroDivisionError
        assert _blas_threads() == 2
        assert in_threads(lambda item: _blas_threads(), range(2)) == [1, 1]
