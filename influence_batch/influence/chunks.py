"""Rows of a shard, cut so that temporaries stay small."""

from __future__ import annotations

from collections.abc import Iterator

# Bytes of temporaries an operation on a shard may take; rows are cut to fit.
WORKING_BYTES = 16 * 1024**2
# Bytes of features of a pass that reads them more than once: they stay in a core's cache.
CACHED_BYTES = 1024**2
# Fewer rows at a time are too little for a thread, those of Python wait for each other between products, and
# too few for products of matrices whose sum is large.
WORTH_ROWS = 1024


def row_chunks(
    n: int, bytes_per_row: float, most: float | None = None, least_rows: int = 1
) -> Iterator[slice]:
    """Slices of n rows that take at most so many bytes (default: the working memory); one at least."""
    step = max(least_rows, int((WORKING_BYTES if most is None else most) / max(bytes_per_row, 1.0)))
    for start in range(0, max(n, 1), step):
        yield slice(start, min(start + step, n))
