"""Influence of every training example on every test point, streamed to the strongest of each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from influence_batch.dataset.shards import Shard
from influence_batch.execution import Reduction
from influence_batch.execution.parts import InMemoryStore, Store, take
from influence_batch.execution.reduction import Rows
from influence_batch.influence.chunks import row_chunks
from influence_batch.influence.leave_one_out import TrainInfluence
from influence_batch.influence.objective import Objective
from influence_batch.influence.reach import Reach
from influence_batch.influence.screening import OutOfRangeError, Pairs, Screen
from influence_batch.influence.ties import comparable
from influence_batch.models import Loss, linear
from influence_batch.solvers import InverseHessian, SolveResult, Status
from influence_batch.threads import in_threads

Estimator = Literal["leave_one_out", "first_order"]
DIRECTIONS = ("harmful", "helpful")
# Pairs that wait to be computed in float64 are at most so many times those that are wanted.
_MOST_KEPT = 32
# So many times those that are wanted come first: they show how few of the others are needed.
_FIRST = 16
# Influences whose first so many binary digits are the same are equal: those first in train come first.
_DIGITS = 40
# Test points whose pairs one thread computes at a time.
_POINTS = 16


@dataclass(frozen=True)
class TestBlock:
    """Test points that are solved together.

    Attributes:
        features: (m, d), as the training examples'.
        targets: (m,).
        train_rows: (m,) row of the test point among the training examples, -1 where it is none.
    """

    features: np.ndarray
    targets: np.ndarray
    train_rows: np.ndarray

    __test__ = False  # its name is not a test's


@dataclass(frozen=True)
class TopK:
    """The strongest training examples of m test points in each direction, strongest first.

    Attributes:
        rows: (2, m, top_k) rows of train, -1 where fewer have that sign; first harmful, then helpful.
        strength: (2, m, top_k) size of the influence that ranks, -1 where there is no row.
        first_order, leave_one_out: (2, m, top_k) influences, NaN where there is no row.
        pairs: how many have been multiplied; the others' influence is known to be too small for the list.
    """

    rows: np.ndarray
    strength: np.ndarray
    first_order: np.ndarray
    leave_one_out: np.ndarray
    pairs: int = 0


def top_k_columns(top: TopK, test_ids: pa.Array, train_ids: Any) -> dict[str, Any]:
    """Columns of the table `cross_influence`: by test point, direction, rank.

    Args:
        test_ids: (m,).
        train_ids: (n,), an Arrow array or a column whose slices are.
    """
    rows = top.rows.transpose(1, 0, 2)
    point, direction, rank = np.nonzero(rows >= 0)
    named, place = np.unique(rows[point, direction, rank], return_inverse=True)
    return {
        "test_id": test_ids.take(pa.array(point)),
        "train_id": take(train_ids, named).take(pa.array(place)),
        "influence": top.first_order[direction, point, rank],
        "leave_one_out_influence": top.leave_one_out[direction, point, rank],
        "direction": pa.array(DIRECTIONS).take(pa.array(direction)),
        "rank": rank + 1,
    }


class _State(NamedTuple):
    """What every shard gets.

    Attributes:
        solutions: (m, k, d) H^-1 of the test points' gradients.
        columns: (k, d, m) the same in float32, of norm 1; (k - 1, d, m) contrasts where logits interact.
        norms: (m,) that the columns had, 1 where that is 0.
        spans: (m,) what no score of columns is above, times an example's reach; None where that is not known.
        least: (2, m) strength that top_k examples are known to have in each direction, None where none is.
    """

    solutions: np.ndarray
    columns: np.ndarray
    norms: np.ndarray
    n_total: float
    top_k: int
    estimator: Estimator
    labels: np.ndarray | None
    train_rows: np.ndarray
    spans: np.ndarray | None = None
    least: np.ndarray | None = None


def test_gradients(objective: Objective, weights: np.ndarray, block: TestBlock) -> np.ndarray:
    """Gradients of the test points' losses, one a column (p, m)."""
    residual = objective.loss.residual(linear.logits(weights, block.features), block.targets)
    return np.ascontiguousarray(linear.per_example_gradients(residual, block.features).T)


def _solved(
    objective: Objective, weights: np.ndarray, inverse: InverseHessian, block: TestBlock, most: int | None
) -> tuple[np.ndarray, SolveResult]:
    """H^-1 of the test points' gradients (m, k, d), and the same as the result of one solve."""
    m = len(block.targets)
    solutions = np.empty((m, objective.k, objective.d))
    results = []
    for start in range(0, m, most or m):
        some = slice(start, start + (most or m))
        part = TestBlock(block.features[some], block.targets[some], block.train_rows[some])
        result = inverse.solve(test_gradients(objective, weights, part))
        solutions[some] = result.solution.T.reshape(-1, objective.k, objective.d)
        results.append(replace(result, solution=np.empty((0, 0))))
    worst = next((one for one in results if one.status != Status.CONVERGED), results[-1])
    return solutions, replace(
        worst,
        solution=solutions.reshape(m, -1).T,
        iterations=np.concatenate([one.iterations for one in results]),
        residual=np.concatenate([one.residual for one in results]),
    )


def cross_influence(
    objective: Objective,
    weights: np.ndarray,
    inverse: InverseHessian,
    block: TestBlock,
    train: TrainInfluence,
    top_k: int,
    estimator: Estimator = "leave_one_out",
    same_label: bool = False,
    reach: Reach | None = None,
    solved: int | None = None,
) -> tuple[TopK, SolveResult]:
    """`influence(i -> t) = (1/n) g_t' H^-1 g_i` for each i and t, and the `top_k` of both signs for each t.

    Args:
        train: of the same weights; gives residuals and corrected residuals.
        estimator: which of the two influences ranks.
        same_label: only training examples with the test point's label.
        reach: bounds each influence; most pairs then need no product. The result is the same.
        solved: test points that the solver gets at a time, as it makes several arrays of (p, m); all if None.

    Returns:
        The strongest examples, and the solve with a residual for each test point.
    """
    solutions, result = _solved(objective, weights, inverse, block, solved)
    interact = not objective.loss.separable
    columns, norms = _columns(solutions, interact, np.float32)
    state = _State(
        solutions,
        columns,
        norms,
        objective.n,
        top_k,
        estimator,
        block.targets if same_label else None,
        block.train_rows,
        None if reach is None else reach.of_points(solutions, interact) / norms,
    )
    rows = {"residual": train.residual, "corrected": train.corrected_residual}
    if reach is not None:
        rows["reach"] = reach.rows
    m = len(block.targets)
    reduction = Reduction(_shard_top_k, merge_top_k, lambda: _empty(m, top_k), informed=_informed)
    return objective.executor.reduce(objective.dataset, reduction, state, rows), result


def mean_influence(
    objective: Objective, solution: np.ndarray, train: TrainInfluence, store: Store | None = None
) -> tuple[Any, Any]:
    """Influence on a mean of test losses, first order and leave-one-out: (n,) each.

    Args:
        solution: H^-1 of the mean gradient (p,).
        store: where the parts go (default: memory).
    """
    rows = {"residual": train.residual, "corrected": train.corrected_residual}
    dataset = objective.dataset
    table = (store or InMemoryStore()).table(
        "mean-influence", [dataset.bounds(index) for index in range(dataset.n_shards)]
    )
    state = (solution[:, None], objective.n)
    for index, part in objective.executor.map(dataset, _shard_mean, state, rows, table.missing):
        table.write(index, part)
    columns = table.columns()
    return columns["first_order"], columns["leave_one_out"]


def _shard_mean(shard: Shard, state: tuple[np.ndarray, float], rows: Rows) -> dict[str, np.ndarray]:
    solution, n_total = state
    moved = linear.project(solution, shard.features)[:, :, 0]
    return {
        "first_order": (moved * rows["residual"]).sum(axis=1) / n_total,
        "leave_one_out": (moved * rows["corrected"]).sum(axis=1) / n_total,
    }


def influence_of_some(
    features: np.ndarray, residual: np.ndarray, solutions: np.ndarray, n_total: float
) -> np.ndarray:
    """Influence (e, m) of e examples on m test points.

    Args:
        features: (e, d) of the examples.
        residual: (e, k), the corrected one for leave-one-out influence.
        solutions: (m, k, d) H^-1 of the test points' gradients.
        n_total: n.
    """
    total = np.zeros((len(features), len(solutions)))
    for a in range(residual.shape[1]):
        moved = features @ solutions[:, a].T
        moved *= residual[:, a, None] / n_total
        total += moved
    return total


def _by_point(solution: np.ndarray, k: int) -> np.ndarray:
    """m parameter vectors (p, m) as (m, k, d)."""
    return np.ascontiguousarray(solution.T).reshape(solution.shape[1], k, -1)


def _columns(solutions: np.ndarray, contrasts: bool, dtype: type) -> tuple[np.ndarray, np.ndarray]:
    """What scores are made with, and norms (m,); see `_State`. Residuals of logits that interact sum to 0."""
    m, k, d = solutions.shape
    columns, norms = np.empty((k - contrasts, d, m), dtype), np.empty(m)
    for some in row_chunks(m, 16.0 * k * d):
        vectors = solutions[some]
        if contrasts:
            vectors = vectors[:, :-1] - vectors[:, -1:]
        size = np.linalg.norm(vectors.reshape(len(vectors), -1), axis=1)
        size[size == 0] = 1.0
        norms[some] = size
        np.divide(vectors.transpose(1, 2, 0), size, out=columns[:, :, some], casting="same_kind")
    return columns, norms


def _informed(state: _State, total: TopK) -> _State:
    """A later shard's pair is to be stronger than the last of the strongest so far."""
    least = total.strength[:, :, -1]
    return state._replace(least=np.where(least > 0, least, -np.inf))


def _shard_top_k(shard: Shard, state: _State, rows: Rows) -> TopK:
    """Pairs that may be among the strongest by products in float32; of these the strongest, in float64."""
    try:
        return _screened(shard, state, state.columns, rows)
    except OutOfRangeError:
        contrasts = len(state.columns) < state.solutions.shape[1]
        return _screened(shard, state, _columns(state.solutions, contrasts, np.float64)[0], rows)


def _screened(shard: Shard, state: _State, columns: np.ndarray, rows: Rows) -> TopK:
    m, top_k = len(state.solutions), state.top_k
    total = _empty(m, top_k)
    residual = rows["corrected" if state.estimator == "leave_one_out" else "residual"]
    largest = float(np.abs(residual[:, : len(columns)]).max(initial=0.0)) or 1.0
    residual = residual / largest
    least = None if state.least is None else state.least * (state.n_total / largest) / state.norms
    screen = Screen(columns, top_k, least, state.spans)
    reach, order = None, np.arange(len(residual))
    if "reach" in rows:
        # Those of which most is to be expected first: from some on none can be among the strongest.
        sizes = np.linalg.norm(residual, axis=1)
        reach = np.where(sizes > 0, rows["reach"] * np.maximum(sizes, np.finfo(float).tiny), 0.0)
        order = np.argsort(-reach, kind="stable")

    def barred(scores: np.ndarray, which: np.ndarray, points: np.ndarray) -> None:
        if state.labels is not None:
            scores[shard.targets[which][:, None] != state.labels[points][None, :]] = np.nan
        own = state.train_rows[points]
        inside = np.flatnonzero(np.isin(own, which + shard.start))
        if len(inside):
            at = np.argsort(which, kind="stable")
            place = at[np.searchsorted(which, own[inside] - shard.start, sorter=at)]
            scores[place, inside] = np.nan

    first = 0 if reach is None else min(_FIRST * top_k, len(residual))
    parts = [slice(0, first)] if first else []
    for rest in row_chunks(len(residual) - first, screen.bytes_per_row()):
        parts.append(slice(first + rest.start, first + rest.stop))
    for part in parts:
        some = order[part]
        if not screen.add(
            shard, some, residual[some, : len(columns)], None if reach is None else reach[some], barred
        ):
            break
        if screen.n_kept > _MOST_KEPT * top_k * m:
            total = merge_top_k(total, _exact(shard, state, rows, screen.take()))
    total = merge_top_k(total, _exact(shard, state, rows, screen.take()))
    return replace(total, pairs=screen.pairs)


def _exact(shard: Shard, state: _State, rows: Rows, pairs: list[Pairs]) -> TopK:
    """The strongest of some pairs, by direction (rows of the shard), from influences in float64."""
    m = len(state.solutions)
    row = np.concatenate([of.rows for of in pairs])
    point = np.concatenate([of.points for of in pairs])
    # What is near to 0 can be a pair of both directions.
    row, point = np.divmod(np.unique(row * m + point), m)
    order = np.argsort(point, kind="stable")
    row, point = row[order], point[order]
    edges = np.searchsorted(point, np.arange(m + 1))
    moved = np.empty((len(row), state.solutions.shape[1]))

    def some(points: range) -> None:
        for t in points:
            for part in row_chunks(edges[t + 1] - edges[t], 8.0 * shard.features.shape[1]):
                here = slice(edges[t] + part.start, edges[t] + part.stop)
                np.matmul(np.take(shard.features, row[here], axis=0), state.solutions[t].T, out=moved[here])

    in_threads(some, [range(start, min(start + _POINTS, m)) for start in range(0, m, _POINTS)])
    first = np.einsum("ck,ck->c", moved, rows["residual"][row]) / state.n_total
    corrected = np.einsum("ck,ck->c", moved, rows["corrected"][row]) / state.n_total
    score = corrected if state.estimator == "leave_one_out" else first
    return _strongest(score, first, corrected, row + shard.start, point, m, state.top_k)


def _strongest(
    score: np.ndarray,
    first: np.ndarray,
    corrected: np.ndarray,
    row: np.ndarray,
    point: np.ndarray,
    m: int,
    top_k: int,
) -> TopK:
    """The strongest of some pairs (c,) each; a score of 0 takes no part."""
    total = _empty(m, top_k)
    for direction, sign in enumerate((-1.0, 1.0)):
        order = np.lexsort((row, -comparable(sign * score, _DIGITS), point))
        order = order[sign * score[order] > 0]
        counts = np.bincount(point[order], minlength=m)
        rank = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
        order, rank = order[rank < top_k], rank[rank < top_k]
        at = (direction, point[order], rank)
        total.rows[at] = row[order]
        total.strength[at] = sign * score[order]
        total.first_order[at] = first[order]
        total.leave_one_out[at] = corrected[order]
    return total


def _empty(m: int, top_k: int) -> TopK:
    nothing = np.full((2, m, top_k), np.nan)
    return TopK(np.full((2, m, top_k), -1), np.full((2, m, top_k), -1.0), nothing, nothing.copy())


def merge_top_k(left: TopK, right: TopK) -> TopK:
    """The strongest of two sets of examples; of equal ones, those that come first in train."""
    top_k = left.rows.shape[2]
    strength = np.concatenate([left.strength, right.strength], axis=2)
    rows = np.concatenate([left.rows, right.rows], axis=2)
    order = np.lexsort((rows, -comparable(strength, _DIGITS)), axis=2)[:, :, :top_k]

    def take(one: np.ndarray, other: np.ndarray) -> np.ndarray:
        return np.take_along_axis(np.concatenate([one, other], axis=2), order, axis=2)

    return TopK(
        np.take_along_axis(rows, order, axis=2),
        np.take_along_axis(strength, order, axis=2),
        take(left.first_order, right.first_order),
        take(left.leave_one_out, right.leave_one_out),
        left.pairs + right.pairs,
    )


def work_of_cross_influence(shard: Shard, loss: Loss, weights: np.ndarray, m: int, top_k: int) -> None:
    """What one shard does for m test points; for measuring its time."""
    solution = np.random.default_rng(0).standard_normal((weights.size, m))
    solutions = _by_point(solution, loss.outputs)
    columns, norms = _columns(solutions, not loss.separable, np.float32)
    n = float(len(shard.targets))
    state = _State(solutions, columns, norms, n, top_k, "leave_one_out", None, np.full(m, -1))
    residual = loss.residual(linear.logits(weights, shard.features), shard.targets)
    _shard_top_k(shard, state, {"residual": residual, "corrected": residual})
