"""What a list would be worth, cut off at any depth."""

from __future__ import annotations

from itertools import count

import numpy as np

from influence_batch.detection.planting import power_at
from influence_batch.detection.suspects import Reading, Settled

_NONE = Settled()
# Depths of one decade; and the least depth.
_STEPS, _FIRST = (1, 2, 5), 10


def depth_columns(
    reading: Reading, rank: np.ndarray, n_listed: int, settled: Settled = _NONE
) -> dict[str, np.ndarray]:
    """Columns of the table `depths`: a row for depths of 10, 20, 50, 100, ..., for the list's and for all.

    Args:
        rank: (n,) 1 for the most suspect.
        n_listed: length of the list.
        settled: rows that stand outside of the order by doubt.
    """
    n = len(rank)
    p_by_rank, doubt_by_rank = np.empty(n), np.empty(n)
    p_by_rank[rank - 1] = reading.p_mislabeled
    doubt_by_rank[rank - 1] = reading.doubt
    # An error that was planted is on a list as long as the last unsettled row on it is no more suspect.
    doubt_by_rank[rank[settled.rows] - 1] = np.inf
    doubt_by_rank = np.minimum.accumulate(doubt_by_rank)
    depth = np.array(_depths(n, n_listed))
    expected = np.cumsum(p_by_rank)[depth - 1]
    powers = [power_at(reading.planted, float(doubt_by_rank[at - 1])) for at in depth]
    columns = {
        "depth": depth,
        "p_mislabeled": p_by_rank[depth - 1],
        "estimated_precision": expected / depth,
        "estimated_recall": expected / max(reading.estimated_errors, 1e-300),
        "is_list": depth == n_listed,
    }
    for kind in ("random", "nearest"):
        for suffix, field in (("", "share"), ("_low", "low"), ("_high", "high")):
            columns[f"power_{kind}{suffix}"] = np.array(
                [getattr(power[kind], field) if kind in power else np.nan for power in powers]
            )
    return columns


def _depths(n: int, n_listed: int) -> list[int]:
    depths = {n, n_listed} - {0}
    for decade in count():
        for step in _STEPS:
            depth = _FIRST * step * 10**decade
            if depth >= n:
                return sorted(depths)
            depths.add(depth)
    raise AssertionError
