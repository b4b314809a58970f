"""Which worker thread has which shards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence


def settle(slots: Sequence[str], threads: Mapping[str, int]) -> list[str]:
    """The worker of every slot, one slot for each worker thread.

    Slots of workers that stay keep their position, and new workers take the positions of lost ones: what
    a slot holds depends on its position and on the number of slots.

    Args:
        slots: the workers' addresses as they were.
        threads: number of threads by address, as they are.
    """
    free = Counter(threads)
    settled: list[str | None] = []
    for address in slots:
        stays = free[address] > 0
        free[address] -= stays
        settled.append(address if stays else None)
    fresh = sorted(free.elements())
    filled = [address if address is not None else fresh.pop(0) if fresh else None for address in settled]
    return [address for address in filled if address is not None] + fresh


def spread(sizes: Sequence[int], n_slots: int) -> list[tuple[int, ...]]:
    """Numbers of the shards of every slot: runs of neighbours with about as many rows each.

    No run has more than its share of the rows and one shard. With fewer shards than slots, or a few
    large ones, some runs are empty.
    """
    runs: list[list[int]] = [[] for _ in range(n_slots)]
    total, before = sum(sizes), 0
    for index, size in enumerate(sizes):
        # A shard goes where its middle falls when all rows are cut into equal parts.
        runs[min(n_slots - 1, (2 * before + size) * n_slots // max(1, 2 * total))].append(index)
        before += size
    return [tuple(run) for run in runs]


def first_run(shards: Sequence[int], bounds: Callable[[int], tuple[int, int]], most: int) -> tuple[int, ...]:
    """The first of some shards and the neighbours that follow it, as long as they have at most so many rows.

    Args:
        shards: numbers of shards, rising.
        bounds: first row of a shard and the row behind its last.
    """
    length = 1
    while (
        length < len(shards)
        and shards[length] == shards[length - 1] + 1
        and bounds(shards[length])[1] - bounds(shards[0])[0] <= most
    ):
        length += 1
    return tuple(shards[place] for place in range(length))
