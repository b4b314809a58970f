"""Memory that is used again where nobody looks at it, and features that are made by slices."""

from __future__ import annotations

import numpy as np
import pytest

from influence_batch.dataset.opened import BySlices, in_float64


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


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("intercept", [True, False])
def test_slices_are_those_of_the_whole(dtype: type, intercept: bool) -> None:
    kept = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    slices = BySlices(kept, lambda rows: 2.0 * rows.astype(np.float64), 3 + intercept, intercept, dtype)
    whole = in_float64(2.0 * kept.astype(np.float64), intercept).astype(dtype)
    assert (len(slices), slices.shape) == (50, whole.shape)
    for rows in (slice(None), slice(7, 20), slice(40, 99), slice(0, 0)):
        assert slices[rows].dtype == dtype
        np.testing.assert_array_equal(slices[rows], whole[rows])
