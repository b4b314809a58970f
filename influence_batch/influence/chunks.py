"""Rows of a shard, cut so that temporaries stay small."""

from __future__ import annotations

from collections.abc import Iterator

# Bytes of temporaries an operation on a shard may take; rows are cut to fit.
WORKING_BYTES = 16 * 1024**2
# Bytes of features of a pass that reads them more than once: they stay in a core's cache.
CACHED_BYTES = 1024**2


def row_chunks(n: int, bytes_per_row: float, most: float | None = None) -> Iterator[slice]:
    """Slices of n rows that take at most so many bytes (default: the working memory)."""
    step = max(1, int((WORKING_BYTES if most is None else most) / max(bytes_per_row, 1.0)))
    for start in range(0, n, step):
        yield slice(start, min(start + step, n))
