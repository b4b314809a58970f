"""What an audit takes in memory whatever solver it has, and whatever of its data stays there."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any

from influence_batch.config import AuditConfig
from influence_batch.detection.suspects import fit_rows
from influence_batch.execution import local_workers
from influence_batch.influence.fit import sample_rows
from influence_batch.models import Loss
from influence_batch.models.many_classes import MANY

# A part of memory_limit stays free for what allocators keep and Parquet's decoder holds.
_USABLE = 0.85
# One shard, opened, is at most this share of memory_limit for each map function that runs, and this size.
_SHARD_SHARE = 1 / 40
_SHARD_BYTES = 64 * 1024**2
# On workers so many shards each, that none has a shard more to do than the others while they wait.
_SHARDS_A_SLOT, _LEAST_ROWS = 8, 1_000
# What is computed for an example, for each output: see `influence.leave_one_out`.
_OUTPUT_VALUES = 12
# With many classes fewer, a chunk of rows at a time, but products want rows to be many.
_VALUES_OF_MANY, _MANY_BYTES = 4, 128 * 1024**2
# What an opened shard takes with the form it is kept in and the copies that products make of it.
_SHARD_COPIES = 5.0
# Temporaries of a map function; see `row_chunks`.
_WORKING = 32 * 1024**2
# Vectors of n that are held at a time: hashes, probabilities, doubts, ranks.
ROW_BYTES, _REGRESSION_ROW_BYTES = 64.0, 200.0
# A reader, a fit of the noise matrix: what does not depend on the data.
_BASE = 24 * 1024**2
# Arrays (p, test points of a block) in the flow's process, and in each map function, on workers with its own.
_BLOCK_COPIES, _BLOCK_COPIES_A_SLOT, _BLOCK_COPIES_HERE = 3.0, 3.0, 1.0
_BLOCK_SHARE = 0.1
# Smaller blocks lose less when a run is killed; larger ones make fewer passes.
_MOST_TEST_POINTS_A_BLOCK = 1024
# The same for the test points of a block that a solver gets at a time.
_SOLVER_COPIES, _SOLVER_SHARE, _MOST_SOLVED = 9.0, 0.05, 256
# Slots that are planned for where a cluster's size is not in the config.
_UNKNOWN_SLOTS = 4


@dataclass(frozen=True)
class Sizes:
    """n, d (with the intercept's column), k, m, and whether logits interact."""

    n: int
    d: int
    k: int
    m: int
    loss: Loss

    @property
    def p(self) -> int:
        return self.k * self.d


def planned_slots(cluster: Any) -> int:
    """Map functions that run at a time, as far as the config tells."""
    if cluster.kind == "none":
        return 1
    if cluster.kind == "local":
        return local_workers(cluster) * int(cluster.threads_per_worker)
    if cluster.kind == "class" and cluster.scale is not None:
        return int(cluster.scale)
    if cluster.kind == "class" and cluster.adapt is not None:
        return int(cluster.adapt.maximum)
    return _UNKNOWN_SLOTS


def preconditioner_bytes(config: AuditConfig) -> float:
    """What the preconditioner's factors may take; above that it is the diagonal."""
    return min(512 * 1024**2, 0.15 * config.memory_limit)


def model_width(config: AuditConfig, width: int) -> tuple[int, int]:
    """Features of the model, with the intercept's column, and the most that any step makes."""
    widths = [width]
    for step in config.model.features:
        widths.append(getattr(step, "components", widths[-1]))
    return widths[-1] + config.model.intercept, max(widths) + config.model.intercept


def shard_rows(config: AuditConfig, width: int, outputs: int, n: int | None = None) -> int:
    """Rows of one shard: what is made of them, features or a few values for each output, stays small.

    Args:
        n: rows of the dataset, where its shards are to be spread evenly over the workers.
    """
    slots = planned_slots(config.cluster)
    many = outputs >= MANY and config.model.kind == "softmax"
    size = min(_MANY_BYTES if many else _SHARD_BYTES, _SHARD_SHARE * config.memory_limit / slots)
    widest = max(model_width(config, width)[1], (_VALUES_OF_MANY if many else _OUTPUT_VALUES) * outputs)
    rows = max(1, int(size / (8.0 * widest)))
    if n is not None and slots > 1:
        rows = min(rows, max(_rounded_down(ceil(n / (_SHARDS_A_SLOT * slots))), _LEAST_ROWS))
    return rows


def _rounded_down(rows: int) -> int:
    """To four binary digits: a few rows more do not cut all shards anew."""
    step = 2 ** max(0, rows.bit_length() - 4)
    return rows // step * step


@dataclass(frozen=True)
class Needs:
    """Bytes that an audit takes whatever solver it has, and whatever of its data stays in memory.

    Attributes:
        rows: for vectors of n.
        shards: for shards that are worked on.
        shard_rows: of each of those.
        block: number of test points whose pairs are looked through together.
        column: for each of them.
        solved: how many of them are solved for together.
        solving: for each of these.
        start: for the preconditioner.
        fixed: the sum, but for the test points.
        usable: of memory_limit.
    """

    rows: float
    shards: float
    shard_rows: int
    block: int
    column: float
    solved: int
    solving: float
    start: float
    fixed: float
    usable: float

    @property
    def points(self) -> float:
        """For the test points."""
        return self.block * self.column + self.solved * self.solving

    @property
    def least(self) -> float:
        return self.fixed + self.points

    def within(self, room: float, m: int) -> tuple[int, int]:
        """Numbers of test points, of a block and of those solved for, that take about so many bytes."""
        solved = max(1, int(self.solved * min(1.0, room / self.points)))
        block = int(min((room - solved * self.solving) / self.column, _MOST_TEST_POINTS_A_BLOCK, m))
        return max(block, solved), solved


def needs_of(config: AuditConfig, sizes: Sizes, width: int, regression: bool) -> Needs:
    slots = planned_slots(config.cluster)
    most = config.shard_rows or shard_rows(config, width, sizes.k)
    most = min(most, sizes.n)
    values = _SHARD_COPIES * model_width(config, width)[1] + 3.0 * _OUTPUT_VALUES * sizes.k
    shards = slots * (8.0 * most * values + _WORKING)
    start = min(8.0 * sizes.k * sizes.d**2, preconditioner_bytes(config))
    # Rows that a fit begins with, twice while they are put together, in float32 too.
    start += 2.5 * 8.0 * sizes.d * sample_rows(sizes.n, sizes.d, preconditioner_bytes(config))
    rows = (_REGRESSION_ROW_BYTES if regression else ROW_BYTES) * sizes.n
    rows += 9.0 * 8.0 * sizes.k * fit_rows(sizes.n, sizes.k)  # a noise matrix is fitted
    here = config.cluster.kind == "none"
    column = 8.0 * sizes.p * (_BLOCK_COPIES + slots * (_BLOCK_COPIES_HERE if here else _BLOCK_COPIES_A_SLOT))
    share = _BLOCK_SHARE * config.memory_limit / column
    block = int(min(max(share, 1), _MOST_TEST_POINTS_A_BLOCK, sizes.m))
    solving = 8.0 * sizes.p * _SOLVER_COPIES
    solved = int(min(max(_SOLVER_SHARE * config.memory_limit / solving, 1), _MOST_SOLVED, block))
    fixed, usable = _BASE + rows + shards + start, _USABLE * config.memory_limit
    return Needs(rows, shards, most, block, column, solved, solving, start, fixed, usable)


def too_small(config: AuditConfig, sizes: Sizes, width: int, regression: bool, needs: Needs) -> str:
    """What is too large for memory_limit, how much would do, and what else there is to change."""
    least = needs.least / _USABLE

    # With more memory shards and blocks are larger.
    def needed(limit: float) -> float:
        limited = config.model_copy(update={"memory_limit": int(limit)})
        return needs_of(limited, sizes, width, regression).least / _USABLE

    while (more := needed(least)) > least:
        least = 1.02 * more
    slots = planned_slots(config.cluster)
    places = "place" if slots == 1 else "places"
    return (
        f"memory_limit: found {_size(config.memory_limit)}; this audit takes at least {_size(least)}: "
        f"{_size(needs.rows)} for {sizes.n} rows, {_size(needs.shards)} for shards of {needs.shard_rows} "
        f"rows at {slots} {places} at a time, {_size(needs.points)} for {sizes.p} parameters "
        f"and {_size(needs.start)} for what CG starts from. Raise memory_limit"
        + (", lower shard_rows" if config.shard_rows else "")
        + (", take fewer workers" if slots > 1 else "")
        + (", or a step with fewer components" if sizes.d > width + 1 else "")
    )


def _size(size: float) -> str:
    """Rounded up, so that what is named is enough."""
    return f"{ceil(size / 2**30 * 100) / 100:.2f} GiB" if size >= 2**30 else f"{ceil(size / 2**20)} MiB"
