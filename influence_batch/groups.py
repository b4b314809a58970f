"""The stage that compares groups of rows: annotators, sources, whatever `group_by` names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from influence_batch.detection import Reading
from influence_batch.detection.suspects import interval
from influence_batch.execution.parts import blocks
from influence_batch.solvers import ConjugateGradient, SolveResult
from influence_batch.stages import Crossed, Data, Explained, Groups, Listing, Model

# Groups of a column, the largest first, whose influence is computed with their own curvature: each takes some
# passes over the data.
_MOST_CURVED = 50
# A group's rate is drawn towards that of all, as if by so many rows.
_PSEUDO_ROWS = 20.0
_EM_STEPS = 50
# Relative residual of a group's Newton step.
_RTOL = 1e-6


def compare_groups(
    data: Data,
    model: Model,
    explained: Explained,
    crossed: Crossed,
    reading: Reading,
    listing: Listing,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Groups:
    """Every group of every column of `group_by`.

    Raises:
        SolverError: a group's step missed its tolerance, unless solver.on_unconverged is `flag`.
    """
    n = data.train.n_rows
    everything = slice(0, n)
    influence, _ = crossed.mean_over_others(
        everything,
        np.asarray(explained.train.self_influence[everything]),
        np.asarray(explained.train.self_leave_one_out[everything]),
    )
    p = np.asarray(reading.p_mislabeled)
    whole = max(float(p.mean()), 1e-300)
    tables: list[Mapping[str, Any]] = []
    unconverged = 0
    for name, column in zip(data.prepared.config.group_by, data.train_inspection.groups, strict=True):
        values, codes = _encoded(column, n)
        g = len(values)
        rows = np.bincount(codes, minlength=g)
        suspects = np.bincount(codes[listing.suspect], minlength=g)
        errors = _errors(p, codes, rows)
        first_order = np.bincount(codes, weights=influence, minlength=g)
        ends = np.array([interval(count, count) for count in errors])
        order = np.lexsort((np.arange(g), -errors / rows))
        curved = np.full(g, np.nan)
        largest = [int(group) for group in np.argsort(-rows, kind="stable")[:_MOST_CURVED] if rows[group] < n]
        for done, group in enumerate(largest):
            progress(done, len(largest))
            result = _left_out(model, explained, codes == group)
            if data.prepared.config.solver.on_unconverged == "raise":
                result.require_converged()
            if result.converged[0]:
                curved[group] = float(crossed.mean_gradient @ result.solution[:, 0])
            else:
                unconverged += 1
        tables.append(
            {
                "group_by": pa.array([name] * g, pa.string()),
                "value": values.take(pa.array(order)),
                "rows": rows[order],
                "suspects": suspects[order],
                "estimated_errors": errors[order],
                "estimated_errors_low": ends[order, 0],
                "estimated_errors_high": np.minimum(ends[order, 1], rows[order]),
                "error_rate": (errors / rows)[order],
                "times_overall": (errors / rows / whole)[order],
                "mean_test_influence": first_order[order],
                "mean_test_group_influence": curved[order],
            }
        )
    return Groups(tables, unconverged)


def _encoded(column: Any, n: int) -> tuple[pa.Array, np.ndarray]:
    """Values of a column, and which of them each row has (n,)."""
    known: dict[Any, int] = {}
    codes = np.empty(n, dtype=np.int64)
    for part in blocks(n):
        encoded = pc.dictionary_encode(column[part], null_encoding="encode")
        here = [known.setdefault(value, len(known)) for value in encoded.dictionary.to_pylist()]
        codes[part] = np.array(here)[encoded.indices.to_numpy(zero_copy_only=False)]
    return pa.array(list(known), pa.string()), codes


def _errors(p: np.ndarray, codes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Expected number of wrong labels of each group (g,), each with a rate of its own.

    p_mislabeled (n,) knows one rate for all. With a group's own prior odds its probabilities shift, and with
    them its rate: iterated, that is EM for a shifted prior (Saerens et al. 2002).
    """
    overall = float(np.clip(p.mean(), 1e-9, 1.0 - 1e-9))
    odds = p / np.maximum(1.0 - p, 1e-12) * (1.0 - overall) / overall
    rate = np.full(len(rows), overall)
    for _ in range(_EM_STEPS):
        shifted = odds * (rate / (1.0 - rate))[codes]
        expected = np.bincount(codes, weights=shifted / (1.0 + shifted), minlength=len(rows))
        rate = np.clip((expected + _PSEUDO_ROWS * overall) / (rows + _PSEUDO_ROWS), 1e-9, 1.0 - 1e-9)
    return expected


def _left_out(model: Model, explained: Explained, members: np.ndarray) -> SolveResult:
    """What the weights gain when a group is left out, by one Newton step without it.

    J without the group has the gradient `-(1/n') (sum of the group's g_i + |G| l2 w)` at the optimum of
    J, and the Hessian of the rows that stay (Koh et al. 2019).
    """
    stays = replace(model.objective, example_weights=(~members).astype(np.float64))
    objective, weights = explained.as_preconditioner(stays), model.fit.weights
    gradient = objective.at(weights).gradient
    return ConjugateGradient(objective.hessian(weights), rtol=_RTOL).solve(-gradient[:, None])
