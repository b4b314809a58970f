"""The training objective and its Hessian, summed over shards.

`J(w) = (1/n) sum_i loss_i(w) + (l2/2) |w_penalised|^2`
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Any, NamedTuple

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve, eigh

from influence_batch.dataset.shards import Dataset, Shard
from influence_batch.execution import Executor, beside, gather_rows
from influence_batch.execution.reduction import Rows, add, sum_over_shards
from influence_batch.influence.chunks import CACHED_BYTES, WORKING_BYTES, WORTH_ROWS, row_chunks
from influence_batch.influence.kronecker import feature_basis, kronecker
from influence_batch.models import linear
from influence_batch.models.losses import Loss, curvature_sum, value_and_residual
from influence_batch.solvers import BlockShape, Kronecker, SolverError
from influence_batch.threads import by_one_thread, in_threads, sum_in_threads

# A pass with at most so many vectors is worked on in threads, a group of chunks each.
_FEW_VECTORS, _GROUPS = 4, 8


# From so many logits on one eigenbasis of X'X is worth more than a factor for each of them.
MANY = 16


class Point(NamedTuple):
    """J at some weights: value and gradient (p,)."""

    value: float
    gradient: np.ndarray


@dataclass(frozen=True)
class OneShard:
    """A source of one shard that is in memory, as far as reductions ask."""

    shard: Shard
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def n_rows(self) -> int:
        return len(self.shard.features)

    @property
    def n_shards(self) -> int:
        return 1

    def bounds(self, index: int) -> tuple[int, int]:
        return 0, self.n_rows

    def load(self, index: int) -> Shard:
        return self.shard

    def open(self, kept: Shard) -> Shard:
        return kept

    def by_slices(self, dtype: type[np.float64] | type[np.float32]) -> OneShard:
        return self


@dataclass(frozen=True)
class Objective:
    """J over a dataset.

    Args:
        dataset: training examples, with the intercept's column where there is one.
        executor: where reductions run.
        loss: on the logits.
        penalty: (d,) l2 of each row of features; 0 for an intercept that is not penalised.
        damping: added to the Hessian's diagonal, not to J.
        example_weights: (n,) how often each example counts; None for once. n in J is their sum.
        preconditioner_bytes: above this many bytes of factors the preconditioner is the diagonal.
        near_inverse: V -> H^-1 V of a Hessian near to this one, where there is one already; it then is
            the preconditioner.
        single: whether Hessians and leverages are made of float32 products.
        rough: whether values and gradients are, which then are good to some six digits.
    """

    dataset: Dataset
    executor: Executor
    loss: Loss
    penalty: np.ndarray
    damping: float = 0.0
    example_weights: np.ndarray | None = None
    preconditioner_bytes: float = 512 * 1024**2
    near_inverse: Callable[[np.ndarray], np.ndarray] | None = None
    single: bool = False
    rough: bool = False

    @property
    def k(self) -> int:
        return self.loss.outputs

    @property
    def d(self) -> int:
        return len(self.penalty)

    @property
    def p(self) -> int:
        return self.k * self.d

    @property
    def many_classes(self) -> bool:
        """Whether Kronecker factors of all rows are the near Hessian that a fit begins with.

        A sample has few rows of each class, and its optimum is far. The factors are exact at zero weights,
        and L-BFGS takes fewer passes from there than Newton systems do.
        """
        return self.k >= MANY and not self.loss.separable

    @property
    def n(self) -> float:
        if self.example_weights is None:
            return float(self.dataset.n_rows)
        return float(self.example_weights.sum(dtype=np.float64))

    @property
    def rows(self) -> Mapping[str, np.ndarray]:
        """Row-aligned arrays that every reduction gets."""
        return {} if self.example_weights is None else {"example_weights": self.example_weights}

    @cached_property
    def gram(self) -> np.ndarray:
        """X' X / n (d, d)."""
        mean = sum_over_shards(_shard_gram, self.n)
        gram: np.ndarray = self.executor.reduce(self.dataset, mean, None, self.rows)
        return gram

    def with_damping(self, damping: float) -> Objective:
        """This objective with another damping."""
        return self._with(damping=damping)

    def with_near_inverse(self, near_inverse: Callable[[np.ndarray], np.ndarray] | None) -> Objective:
        """This objective with the inverse of a near Hessian as its preconditioner, or without one."""
        return self._with(near_inverse=near_inverse)

    def with_single(self, single: bool) -> Objective:
        """This objective with products in float32, or not."""
        return self._with(single=single)

    def with_rough(self, rough: bool) -> Objective:
        """This objective with values and gradients of float32 products, or not."""
        return self._with(rough=rough)

    def sampled(self, rows: np.ndarray) -> Objective:
        """J over some of the rows (s,), sorted numbers, in this process's memory."""
        shard = Shard(0, *gather_rows(self.executor, self.dataset, rows))
        shard = shard.doubled() if self.single else shard
        weights = None if self.example_weights is None else self.example_weights[rows]
        return replace(
            self,
            dataset=OneShard(shard),  # type: ignore[arg-type]
            executor=beside(self.executor),
            example_weights=weights,
            near_inverse=None,
        )

    def with_example_weights(self, example_weights: np.ndarray) -> Objective:
        """This objective where examples count otherwise (n,); X'X / n, a basis then, stays what it was."""
        return self._with(example_weights=example_weights)

    def _with(self, **changes: Any) -> Objective:
        """Changed in what X'X / n does not depend on, or little, so that it is not computed again."""
        other = replace(self, **changes)
        if "gram" in self.__dict__:
            other.__dict__["gram"] = self.gram
        return other

    @cached_property
    def _slices(self) -> Dataset:
        """The dataset for passes that read it once."""
        return self.dataset.by_slices(np.float64)

    @cached_property
    def _rough_slices(self) -> Dataset:
        return self.dataset.by_slices(np.float32)

    def at(self, weights: np.ndarray) -> Point:
        """J at weights (k, d)."""
        dataset = self._rough_slices if self.rough else self._slices
        value, gradient = self.executor.reduce(
            dataset, sum_over_shards(_shard_value, self.n), (self.loss, weights, self.rough), self.rows
        )
        value = value + 0.5 * float((weights**2 @ self.penalty).sum())
        gradient = gradient + (weights * self.penalty).ravel()
        return Point(float(value), gradient)

    def gradient_scale(self) -> float:
        """Root mean square norm of the examples' gradients at zero weights; 1 where all are zero."""
        squares = self.executor.reduce(
            self.dataset, sum_over_shards(_shard_squares, self.n), self.loss, self.rows
        )
        return float(np.sqrt(squares)) or 1.0

    def hessian(self, weights: np.ndarray) -> HessianOperator:
        """The Hessian of J at weights (k, d), plus damping."""
        return HessianOperator(self, weights)


def hessian_shape(loss: Loss, d: int) -> BlockShape:
    """Blocks of the Hessian of a loss on d features."""
    k = loss.outputs
    if loss.constant_curvature:
        return BlockShape(1, d, k)
    return BlockShape(k, d, 1) if loss.separable else BlockShape(1, k * d, 1)


@dataclass(frozen=True)
class HessianOperator:
    """The Hessian of an objective at some weights, as the solvers see it.

    Logits that only matter by their differences (softmax) leave J flat along equal shifts of all k
    weights of a feature that has no penalty. No gradient has a part in those directions; along
    them, and nowhere else, the operator has the mean eigenvalue of X'X / n, so that it is positive
    definite while H^-1 g stays exactly what it is.
    """

    objective: Objective
    weights: np.ndarray

    @property
    def size(self) -> int:
        return self.objective.p

    @property
    def n_terms(self) -> int:
        return self.objective.dataset.n_rows

    @property
    def block_shape(self) -> BlockShape:
        return hessian_shape(self.objective.loss, self.objective.d)

    @cached_property
    def _gauge(self) -> np.ndarray:
        """(d,) what is added along the flat directions: c for features without penalty, for softmax."""
        o = self.objective
        if o.loss.separable:
            return np.zeros(o.d)
        scale = float(np.trace(o.gram)) / o.d
        return np.where(o.penalty == 0, scale, 0.0)

    def apply(self, vectors: np.ndarray) -> np.ndarray:
        o = self.objective
        state = (o.loss, self.weights, np.ascontiguousarray(vectors))
        mean = o.executor.reduce(o._slices, sum_over_shards(_shard_product, o.n), state, o.rows)
        return mean + self._fixed(vectors)

    def apply_sample(self, vectors: np.ndarray, terms: np.ndarray) -> np.ndarray:
        o = self.objective
        state = (o.loss, self.weights, np.ascontiguousarray(vectors), terms)
        divisor = len(terms) * o.n / self.n_terms
        mean = o.executor.reduce(o.dataset, sum_over_shards(_shard_sample_product, divisor), state, o.rows)
        return mean + self._fixed(vectors)

    def dense_blocks(self) -> np.ndarray:
        o = self.objective
        sums = o.executor.reduce(
            o.dataset, sum_over_shards(_shard_hessian, o.n), (o.loss, self.weights, o.single), o.rows
        )
        blocks = linear.as_blocks(o.loss, sums)
        del sums
        diagonal = np.arange(blocks.shape[1])
        blocks[:, diagonal, diagonal] += np.tile(o.penalty + o.damping, blocks.shape[1] // o.d)
        if np.any(self._gauge):
            by_output = blocks.reshape(o.k, o.d, o.k, o.d)
            features = np.flatnonzero(self._gauge)
            for j in features:
                by_output[:, j, :, j] += self._gauge[j] / o.k
        return blocks

    def kronecker(self, like: Kronecker | None = None) -> Kronecker:
        """The factors, in the bases of others where such are given."""
        o = self.objective
        return kronecker(
            o.executor,
            o.dataset,
            o.loss,
            self.weights,
            o.rows,
            o.n,
            o.gram,
            self._mean_curvature,
            o.penalty,
            o.damping,
            o.single,
            like,
        )

    def _mean_curvature(self) -> np.ndarray:
        """Mean of C (k, k), or of its diagonal (k,)."""
        o = self.objective
        mean: np.ndarray = o.executor.reduce(
            o.dataset, sum_over_shards(_shard_curvature, o.n), (o.loss, self.weights, o.single), o.rows
        )
        return mean

    def preconditioner(self) -> Callable[[np.ndarray], np.ndarray]:
        """Inverse of the Hessian that has the mean of C in the place of every example's C.

        With C = R diag(c) R' it is, in the basis R, a d by d matrix `c_j X'X/n + diag(penalty)` for
        each j; where those do not fit, only their diagonals. Another Hessian's inverse is better where
        the objective has one.
        """
        o = self.objective
        if o.near_inverse is not None:
            return o.near_inverse
        curvature = self._mean_curvature()
        if o.loss.separable:
            values, basis = curvature, np.eye(o.k)
        else:
            values, basis = eigh(curvature)
        # The mean curvature can vanish (a saturated hinge); the preconditioner must not.
        values = np.maximum(values, 1e-8 * max(float(values.max()), 1e-30))
        flat = np.square(basis.sum(axis=0)) / o.k
        if o.k >= MANY:
            return _mean_kronecker(o, basis, values, flat[:, None] * self._gauge).backsolve
        fixed = o.penalty + o.damping + 1e-14 * np.trace(o.gram) / o.d
        diagonals = fixed[None, :] + flat[:, None] * self._gauge
        if 8 * o.k * o.d**2 > o.preconditioner_bytes:
            diagonals = diagonals + values[:, None] * np.diag(o.gram)

            def by_diagonal(vectors: np.ndarray) -> np.ndarray:
                parts = np.tensordot(basis.T, vectors.reshape(o.k, o.d, -1), 1) / diagonals[:, :, None]
                return np.tensordot(basis, parts, 1).reshape(vectors.shape)

            return by_diagonal
        factors = [
            _factor(value * o.gram, diagonal) for value, diagonal in zip(values, diagonals, strict=True)
        ]

        def by_factors(vectors: np.ndarray) -> np.ndarray:
            parts = vectors.reshape(o.k, o.d, -1)
            with by_one_thread((2.0 * o.d + 4.0 * o.k) * parts.size):
                if not o.loss.separable:
                    parts = np.tensordot(basis.T, parts, 1)
                solved = np.stack(
                    [cho_solve(f, part, check_finite=False) for f, part in zip(factors, parts, strict=True)]
                )
                if not o.loss.separable:
                    solved = np.tensordot(basis, solved, 1)
            return solved.reshape(vectors.shape)

        return by_factors

    def _fixed(self, vectors: np.ndarray) -> np.ndarray:
        """What penalty, damping and the flat directions add to H V."""
        o = self.objective
        parts = vectors.reshape(o.k, o.d, -1)
        product = parts * (o.penalty + o.damping)[:, None]
        if np.any(self._gauge):
            product = product + parts.mean(axis=0) * self._gauge[:, None]
        return product.reshape(vectors.shape)


def _factor(gram: np.ndarray, diagonal: np.ndarray) -> tuple[np.ndarray, bool]:
    """Cholesky factor of `gram` (d, d) plus `diagonal` (d,), raised by no more than rounding calls for."""
    d = len(gram)
    raised, unit = diagonal, float(np.trace(gram)) / d
    for exponent in range(-14, 1):
        try:
            factor: tuple[np.ndarray, bool] = cho_factor(
                gram + np.diag(raised), lower=True, check_finite=False
            )
            return factor
        except LinAlgError:
            raised = diagonal + 10.0**exponent * unit
    raise SolverError("X'X has entries that are not finite: features this large overflow")


def _mean_kronecker(o: Objective, basis: np.ndarray, values: np.ndarray, gauge: np.ndarray) -> Kronecker:
    """`R diag(c) R' (x) X'X/n`, with penalty, damping and what is added along flat directions (k, d)."""
    transform = feature_basis(o.gram, o.penalty)
    spread = np.maximum(np.einsum("ij,jl,il->i", transform, o.gram, transform, optimize=True), 0.0)
    fixed = o.penalty + o.damping + 1e-14 * np.trace(o.gram) / o.d
    return Kronecker(transform, basis, values[:, None] * spread + fixed + gauge)


def _shard_value(shard: Shard, state: tuple[Loss, np.ndarray, bool], rows: Rows) -> tuple[Any, ...]:
    loss, weights, rough = state
    example_weights = rows.get("example_weights")
    multiplied = linear.as_multiplied(weights, rough)

    def some(part: slice) -> tuple[float, np.ndarray]:
        features, targets = shard.multiplied(part, rough), shard.targets[part]
        f = linear.logits(multiplied, features)
        value, residual = value_and_residual(loss, f, targets)
        if example_weights is not None:
            value = value * example_weights[part]
            residual = residual * example_weights[part, None].astype(residual.dtype)
        total = linear.gradient_sum(residual, features)
        return float(value.sum(dtype=np.float64)), total.astype(np.float64, copy=False)

    size = (4.0 if rough else 8.0) * shard.features.shape[1]
    chunks = row_chunks(len(shard.features), size, CACHED_BYTES, WORTH_ROWS)
    return sum_in_threads(some, chunks, add)


def _shard_squares(shard: Shard, loss: Loss, rows: Rows) -> float:
    """Sum of the squared norms of the examples' gradients at zero weights."""
    residual = loss.residual(np.zeros((len(shard.targets), loss.outputs)), shard.targets)
    squares = np.square(residual).sum(axis=1) * np.einsum("ij,ij->i", shard.features, shard.features)
    return float((squares * rows.get("example_weights", 1.0)).sum())


def _shard_gram(shard: Shard, state: None, rows: Rows) -> np.ndarray:
    weights = rows.get("example_weights")
    return linear.weighted_gram(shard.features, np.ones(len(shard.features)) if weights is None else weights)


def _shard_curvature(shard: Shard, state: tuple[Loss, np.ndarray, bool], rows: Rows) -> np.ndarray:
    loss, weights, single = state
    weights = linear.as_multiplied(weights, single)
    example_weights = rows.get("example_weights", np.ones(len(shard.features)))

    def some(part: slice) -> np.ndarray:
        f = linear.logits(weights, shard.multiplied(part, single))
        total = curvature_sum(loss, f, shard.targets[part], example_weights[part].astype(f.dtype))
        return total.astype(np.float64, copy=False)

    size = max(8.0 * loss.outputs, 8.0 * shard.features.shape[1])
    chunks = row_chunks(len(shard.features), size, CACHED_BYTES, WORTH_ROWS)
    return sum_in_threads(some, chunks, add)


def _shard_hessian(shard: Shard, state: tuple[Loss, np.ndarray, bool], rows: Rows) -> np.ndarray:
    loss, weights, single = state
    example_weights = rows.get("example_weights")
    return linear.pair_sums(loss, weights, shard.features, shard.targets, example_weights, single)


def _product(
    loss: Loss,
    weights: np.ndarray,
    features: np.ndarray,
    targets: np.ndarray,
    vectors: np.ndarray,
    example_weights: np.ndarray | None,
) -> np.ndarray:
    size = 32.0 * loss.outputs * vectors.shape[1]
    size = max(size, min(WORKING_BYTES / CACHED_BYTES * 8.0 * features.shape[1], WORKING_BYTES / WORTH_ROWS))
    least = WORTH_ROWS if loss.outputs >= linear.WIDE else 1
    chunks = list(row_chunks(len(features), size, least_rows=least))
    # Products with many vectors are large enough for BLAS's own threads, and their sums for memory.
    groups = min(_GROUPS, len(chunks)) if vectors.shape[1] <= _FEW_VECTORS else 1

    def some(group: int) -> np.ndarray:
        total = np.zeros_like(vectors)
        for part in chunks[group::groups]:
            total += linear.hessian_vector_product_sum(
                loss,
                weights,
                features[part],
                targets[part],
                vectors,
                None if example_weights is None else example_weights[part],
            )
        return total

    return np.asarray(reduce(add, in_threads(some, range(groups)), np.zeros_like(vectors)))


def _shard_product(shard: Shard, state: tuple[Loss, np.ndarray, np.ndarray], rows: Rows) -> np.ndarray:
    loss, weights, vectors = state
    return _product(loss, weights, shard.features, shard.targets, vectors, rows.get("example_weights"))


def _shard_sample_product(
    shard: Shard, state: tuple[Loss, np.ndarray, np.ndarray, np.ndarray], rows: Rows
) -> np.ndarray:
    loss, weights, vectors, terms = state
    inside = terms[(terms >= shard.start) & (terms < shard.start + len(shard.features))] - shard.start
    example_weights = rows.get("example_weights")
    return _product(
        loss,
        weights,
        shard.features[inside],
        shard.targets[inside],
        vectors,
        None if example_weights is None else example_weights[inside],
    )


def work_of_product(shard: Shard, loss: Loss, weights: np.ndarray) -> None:
    """What one shard does in a Hessian-vector product for one vector; for measuring its time."""
    _shard_product(shard, (loss, weights, np.ones((weights.size, 1))), {})
