"""Self-influence and leave-one-out predictions of every training example, from leverages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from influence_batch.dataset.shards import Shard
from influence_batch.errors import RunError
from influence_batch.execution.parts import InMemoryStore, Store, join_columns
from influence_batch.execution.reduction import Rows
from influence_batch.influence.chunks import row_chunks
from influence_batch.influence.objective import Objective
from influence_batch.models import linear, many_classes, quadratic_forms
from influence_batch.models.losses import Loss, predict, value_and_residual
from influence_batch.solvers import Deferred, InverseHessian, Kronecker
from influence_batch.threads import in_threads

# A leverage this near to 1 means that the example alone decides its own prediction.
_FULL_LEVERAGE = 1e-9


# Leverages of an approximate inverse that reach 1, which none does, are scaled down to this.
_MOST_APPROXIMATE = 0.9
# Rows of many classes that a thread works on at a time: what a product of matrices takes to be fast.
_ROWS_OF_MANY = 512
# Bytes of a row that leave some ten thousand rows for a thread at a time.
WORTH_A_THREAD = 1500.0
# The fields of TrainInfluence for some examples.
Part = dict[str, np.ndarray]


@dataclass(frozen=True)
class TrainInfluence:
    """What the fitted model and its inverse Hessian say of each training example.

    The fields are arrays, or columns on disk whose slices are arrays, None those that were not asked for.
    Where leverages are approximate and classes many, those with a value a class are of float32.

    Attributes:
        loss: (n,) of the given label, at the fit.
        predicted: (n,) class code, or number, at the fit.
        residual: (n, k) at the fit.
        corrected_residual: (n, k) `(I - C A)^-1 r`; r for an example that took no part in the fit.
        loo_logits: (n, k) of the model without the example.
        self_influence: (n,) first order, `(1/n) g' H^-1 g`.
        self_leave_one_out: (n,) with the corrected residual in the place of one r.
        leverages: (n, k) of float32 if separable, else the upper triangle of D' A D, row by row; only where
            they are asked for.
        converged: (n,) whether the solves for an example's leverages reached the tolerance; only where each
            has its own and those that did not are flagged.
        inverse_converged: the same of the columns of H^-1, where all leverages are made of these.
    """

    loss: Any = None
    predicted: Any = None
    residual: Any = None
    corrected_residual: Any = None
    loo_logits: Any = None
    self_influence: Any = None
    self_leave_one_out: Any = None
    leverages: Any = None
    converged: Any = None
    inverse_converged: np.ndarray | None = None

    @property
    def unconverged(self) -> int:
        """How many examples, or columns of H^-1, missed the tolerance."""
        found = self.inverse_converged if self.converged is None else self.converged[:]
        return 0 if found is None else int(np.count_nonzero(~np.asarray(found)))


def train_influence(
    objective: Objective,
    weights: np.ndarray,
    inverse: InverseHessian,
    memory: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
    store: Store | None = None,
    name: str = "influence",
    only: Sequence[str] = (),
    with_leverages: bool = False,
) -> TrainInfluence:
    """Leverages of every training example and what follows from them.

    An inverse that is a Kronecker product gives them at once. Where the blocks of another one fit into
    `memory` bytes they are formed once; where they do not, H^-1 is applied to the examples themselves, block
    by block.

    Args:
        store: where the parts go, a part a shard (default: memory).
        name: of the table there.
        only: the fields that are kept, where not all are wanted.
        with_leverages: whether leverages are kept; for an inverse whose blocks are formed.

    Raises:
        SolverError: a solve did not converge, and is not to be flagged.
        RunError: an example has leverage 1, its left-out prediction does not exist.
    """
    dataset = objective.dataset
    bounds = [dataset.bounds(index) for index in range(dataset.n_shards)]
    store = store or InMemoryStore()
    table = store.table(name, bounds)
    missing = table.missing
    blocks, size, _ = objective.hessian(weights).block_shape
    parts: Iterator[tuple[int, Part]]
    factors = inverse.kronecker if missing and isinstance(inverse, Deferred) else None
    flags = isinstance(inverse, Deferred) and inverse.flags
    # Where no part is missing, an earlier process has left what the parts were made of.
    made_of = store.saved(f"{name}-inverse") if flags and not missing else None
    if not missing:
        parts = iter(())
    elif factors is not None:
        parts = objective.executor.map(
            dataset,
            _shard_influence,
            (objective.loss, weights, factors, objective.n, objective.single, False, False),
            objective.rows,
            missing,
        )
    elif 8.0 * blocks * size**2 <= memory:
        made_of = store.remember(f"{name}-inverse", lambda: _blocks_of(inverse))
        missed = not made_of["converged"].all()
        forms = quadratic_forms.leverage_forms(objective.loss, made_of["blocks"], objective.single)
        made_of = {"converged": made_of["converged"]}  # H^-1 has served
        state = (objective.loss, weights, forms, objective.n, objective.single, with_leverages, missed)
        parts = objective.executor.map(dataset, _shard_influence, state, objective.rows, missing)
    else:
        parts = _by_examples(objective, weights, inverse, memory, missing, flags)
    done = dataset.n_rows - sum(bounds[index][1] - bounds[index][0] for index in missing)
    for index, part in parts:
        kept = [*only, *({"converged"} & part.keys())] if only else list(part)
        table.write(index, {field: part[field] for field in kept})
        done += bounds[index][1] - bounds[index][0]
        progress(done, dataset.n_rows)
    return TrainInfluence(
        **table.columns(), inverse_converged=None if made_of is None else made_of["converged"]
    )


def _blocks_of(inverse: InverseHessian) -> dict[str, np.ndarray]:
    """The blocks of H^-1, and which columns reached the tolerance."""
    if isinstance(inverse, Deferred) and inverse.flags:
        blocks, converged = inverse.flagged_inverse_blocks()
        return {"blocks": blocks, "converged": converged}
    return {"blocks": inverse.inverse_blocks(), "converged": np.empty(0, dtype=bool)}


def _shard_influence(
    shard: Shard,
    state: tuple[Loss, np.ndarray, list[quadratic_forms.Forms] | Kronecker, float, bool, bool, bool],
    rows: Rows,
) -> Part:
    loss, weights, inverse, n_total, single, with_leverages, missed = state
    n, k = len(shard.features), loss.outputs
    example_weights = rows.get("example_weights")
    if isinstance(inverse, Kronecker) and k >= many_classes.MANY and not loss.separable:
        return _of_many_classes(shard, loss, weights, inverse, n_total, single, example_weights)
    parts = []
    # As many rows at a time as their leverages fit.
    for some in row_chunks(n, 8.0 * (k if loss.separable else k * k)):
        features, targets = shard.features[some], shard.targets[some]
        if isinstance(inverse, Kronecker):
            leverages = linear.kronecker_leverage(loss, features, *inverse, n_total, single)
        else:
            leverages = quadratic_forms.leverage_by(loss, features, inverse, n_total)

        def made(
            part: slice,
            some: slice = some,
            features: np.ndarray = features,
            targets: np.ndarray = targets,
            leverages: np.ndarray = leverages,
        ) -> Part:
            result = _from_leverages(
                loss,
                weights,
                Shard(shard.start + some.start + part.start, features[part], targets[part]),
                leverages[part],
                None if example_weights is None else example_weights[some][part],
                approximate=isinstance(inverse, Kronecker),
                missed=np.ones(len(leverages[part]), bool) if missed else None,
            )
            if with_leverages:
                result["leverages"] = _packed(leverages[part])
            return result

        per_row = 32.0 * k if loss.separable else 64.0 * k * k
        parts += in_threads(made, row_chunks(len(features), max(per_row, WORTH_A_THREAD)))
    return join_columns(parts)


def _packed(leverages: np.ndarray) -> np.ndarray:
    """Leverages (n, k) or (n, k-1, k-1) as `TrainInfluence` has them."""
    if leverages.ndim == 3:
        leverages = leverages[:, *np.triu_indices(leverages.shape[1])]
    return leverages.astype(np.float32)


def limited(curvature: np.ndarray, leverages: np.ndarray) -> np.ndarray:
    """Approximate leverages, those scaled down that reach 1."""
    return linear.limited(curvature, leverages, _MOST_APPROXIMATE)


def _of_many_classes(
    shard: Shard,
    loss: Loss,
    weights: np.ndarray,
    inverse: Kronecker,
    n_total: float,
    single: bool,
    example_weights: np.ndarray | None,
) -> Part:
    """The same, by a few products of all examples with the factors."""

    multiplied = linear.as_multiplied(weights, single)

    def made(some: slice) -> Part:
        features, targets = linear.as_multiplied(shard.features[some], single), shard.targets[some]
        logits = linear.logits(multiplied, features)
        value, residual = value_and_residual(loss, logits, targets)
        diagonal = linear.kronecker_diagonal(features, inverse.transform, inverse.values, n_total, single)
        found = many_classes.leave_one_out(logits, residual, diagonal, inverse.basis, _MOST_APPROXIMATE)
        corrected, loo_logits, own = found.corrected_residual, found.loo_logits, found.self_leave_one_out
        if example_weights is not None:
            took_part = example_weights[some] > 0
            corrected = np.where(took_part[:, None], corrected, residual)
            loo_logits = np.where(took_part[:, None], loo_logits, logits)
            own = np.where(took_part, own, found.self_influence)
        return {
            "loss": value.astype(np.float64, copy=False),
            "predicted": predict(loss, logits),
            "residual": np.asarray(residual, dtype=np.float32, order="C"),
            "corrected_residual": corrected.astype(np.float32, copy=False),
            "loo_logits": loo_logits.astype(np.float32, copy=False),
            "self_influence": found.self_influence,
            "self_leave_one_out": own,
        }

    n = len(shard.features)
    return join_columns(
        in_threads(made, [slice(at, min(at + _ROWS_OF_MANY, n)) for at in range(0, n, _ROWS_OF_MANY)])
    )


def _by_examples(
    objective: Objective,
    weights: np.ndarray,
    inverse: InverseHessian,
    memory: float,
    shards: Sequence[int],
    flags: bool,
) -> Iterator[tuple[int, Part]]:
    """The same from solves for `x_i (x) D`: k - 1 an example, or one if logits do not interact."""
    columns = 1 if objective.loss.separable else objective.k - 1
    step = max(1, int(memory / (80.0 * objective.p * columns)))
    for index in shards:
        # One shard at a time comes here: its examples are the right-hand sides.
        [(_, shard)] = objective.executor.map(objective.dataset, _whole_shard, shards=[index])
        yield (
            index,
            join_columns(
                [
                    _by_solving(
                        objective,
                        weights,
                        inverse,
                        Shard(
                            shard.start + start,
                            shard.features[start : start + step],
                            shard.targets[start : start + step],
                        ),
                        flags,
                    )
                    for start in range(0, len(shard.features), step)
                ]
            ),
        )


def _by_solving(
    objective: Objective, weights: np.ndarray, inverse: InverseHessian, part: Shard, flagged: bool = False
) -> Part:
    k, separable = objective.k, objective.loss.separable
    n, d = part.features.shape
    if separable:
        sides = np.broadcast_to(part.features.T, (k, d, n)).reshape(objective.p, -1)
    else:
        contrasts = np.concatenate([np.eye(k - 1), -np.ones((1, k - 1))])
        sides = np.einsum("ka,id->kdia", contrasts, part.features).reshape(objective.p, -1)
    result = inverse.solve(sides)
    if not flagged:
        result.require_converged()
    leverages = np.einsum("id,kdia->ika", part.features, result.solution.reshape(k, d, n, -1)) / objective.n
    leverages = leverages[:, :, 0] if separable else leverages[:, :-1] - leverages[:, -1:]
    example_weights = objective.example_weights
    converged = np.asarray(result.converged.reshape(n, -1).all(axis=1))
    found = _from_leverages(
        objective.loss,
        weights,
        part,
        leverages,
        None if example_weights is None else example_weights[part.start : part.start + n],
        missed=~converged,
    )
    return {**found, "converged": converged} if flagged else found


def leave_one_out_loss(
    objective: Objective, weights: np.ndarray, inverse: InverseHessian, part: Shard, dense: bool
) -> float:
    """Mean loss of some training examples, each under the model without it.

    Args:
        part: the examples.
        dense: whether there is memory for the blocks of H^-1; else each example takes its own solves.
    """
    if not dense:
        found = _by_solving(objective, weights, inverse, part)
    else:
        leverages = quadratic_forms.leverage(
            objective.loss, part.features, inverse.inverse_blocks(), objective.n, objective.single
        )
        found = _from_leverages(objective.loss, weights, part, leverages, None)
    return float(objective.loss.value(found["loo_logits"], part.targets).mean())


def _whole_shard(shard: Shard, state: None, rows: Rows) -> Shard:
    return shard


def _from_leverages(
    loss: Loss,
    weights: np.ndarray,
    shard: Shard,
    leverages: np.ndarray,
    example_weights: np.ndarray | None,
    approximate: bool = False,
    missed: np.ndarray | None = None,
) -> Part:
    features, targets = shard.features, shard.targets
    logits = linear.logits(weights, features)
    residual = loss.residual(logits, targets)
    curvature = loss.curvature(logits, targets)
    if approximate and not loss.constant_curvature:
        leverages = limited(curvature, leverages)
    if missed is not None and missed.any():
        # What a solve is off by can bring them to 1, which would be blamed on the example.
        leverages = leverages.copy()
        leverages[missed] = limited(curvature[missed], leverages[missed])
    took_part = np.ones(len(targets), bool) if example_weights is None else example_weights > 0
    full = took_part & (linear.remaining_share(curvature, leverages) < _FULL_LEVERAGE)
    if full.any():
        rows = np.flatnonzero(full)
        listed = ", ".join(str(int(r) + shard.start) for r in rows[:5])
        raise RunError(
            f"{rows.size} training examples have leverage 1 (rows {listed} of train, counted from 0): "
            "the model without them is not determined. Remedy: raise model.l2."
        )
    corrected, loo_logits = linear.leave_one_out_residual(loss, logits, residual, curvature, leverages)
    corrected = np.where(took_part[:, None], corrected, residual)
    loo_logits = np.where(took_part[:, None], loo_logits, logits)
    return {
        "loss": loss.value(logits, targets),
        "predicted": predict(loss, logits),
        "residual": residual,
        "corrected_residual": corrected,
        "loo_logits": loo_logits,
        "self_influence": linear.quadratic_form(residual, leverages, residual),
        "self_leave_one_out": linear.quadratic_form(residual, leverages, corrected),
    }
