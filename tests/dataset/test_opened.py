"""Memory that is used again where nobody looks at it."""

from __future__ import annotations

import numpy as np
import pytest

from influence_batch.dataset.opened import in_float64


def _features(n: int = 100, fill: float = 0.5) -> np.ndarray:
    return np.full((n, 3), fill, dtype=np.float32)


@pytest.mark.parametrize("intercept", [True, False])
def test_features_in_float64_with_a_column_of_ones(intercept: bool) -> None:
    wide = in_float64(_features(), intercept)
    assert (wide.dtype, wide.shape) == (np.float64, (100, 3 + intercept))
    assert wide.flags.c_contiguous
    np.testing.assert_array_equal(wide[:, :3], 0.5)
    np.testing.assert_array_equal(wide[:, 3:], 1.0)


def test_what_nobody_holds_is_filled_anew() -> None:
    address = in_float64(_features(), True).ctypes.data
    assert in_float64(_features(), True).ctypes.data == address
    assert in_float64(_features(90), True).ctypes.data == address
    assert in_float64(_features(10), True).ctypes.data != address  # it would keep memory for 100 rows


@pytest.mark.parametrize("part", [slice(None), slice(5, 9)])
def test_what_somebody_holds_stays_as_it_is(part: slice) -> None:
    held = in_float64(_features(), True)[part][:, :2]
    for fill in (1.5, 2.5):
        other = in_float64(_features(fill=fill), True)
        assert not np.shares_memory(held, other)
        del other
    np.testing.assert_array_equal(held, 0.5)
