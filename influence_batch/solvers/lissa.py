"""LiSSA: a Neumann series of mini-batch Hessians (Agarwal, Bullins and Hazan 2017).

`x_{j+1} = b + (I - H_j / scale) x_j`, started at b, tends to `scale * H^-1 b` in the mean where every
eigenvalue of `H / scale` lies in (0, 2). Differences from the textbook's algorithm:

- `scale` is found: a power iteration's estimate of the largest eigenvalue of H, plus a tenth.
- The series runs in rounds of `depth` terms. Each round solves for the true residual that the last
  one left, so the noise of the mini-batches bounds the speed and not the accuracy.
- Growth is watched at each term. A series that grows is dropped and tried again with twice the
  scale; a round that does not bring the residual down is tried again with four times the batch.
- With a batch of all examples the series is the deterministic Neumann series.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from influence_batch.solvers.iterative import inverse_blocks_by_solving
from influence_batch.solvers.operator import Operator
from influence_batch.solvers.result import SolveResult, Status, relative_residual

_POWER_ITERATIONS = 50
_GROWTH = 1e3
_RETRIES = 12
_FAIR_ROUNDS = 8


def largest_eigenvalue(operator: Operator, seed: int = 0, iterations: int = _POWER_ITERATIONS) -> float:
    """Power iteration's estimate, from below, of the largest eigenvalue of H."""
    vector = np.random.default_rng(seed).standard_normal((operator.size, 1))
    estimate = 0.0
    for _ in range(iterations):
        vector /= np.linalg.norm(vector)
        vector = operator.apply(vector)
        previous, estimate = estimate, float(np.linalg.norm(vector))
        if estimate == 0.0 or abs(estimate - previous) <= 1e-4 * estimate:
            break
    return estimate


def _rounds_needed(relative: np.ndarray, rtol: float, pace: float) -> float:
    """Rounds to bring the worst residual down to rtol, each multiplying it by `pace`."""
    worst = float(np.max(relative))
    if worst <= rtol or not 0.0 < pace < 1.0:
        return 0.0
    return float(np.log(rtol / worst) / np.log(pace))


class Lissa:
    """H^-1 by LiSSA; see the module's docstring.

    Args:
        scale: above half the largest eigenvalue of H, or `auto`.
        depth: terms of the series in a round.
        repeat: independent series averaged in a round.
        batch_size: examples drawn, with replacement, for a term.
        max_rounds: rounds before giving up.
        seed: of the draws, which depend on nothing else.
    """

    name = "lissa"

    def __init__(
        self,
        operator: Operator,
        rtol: float = 1e-6,
        scale: float | Literal["auto"] = "auto",
        depth: int = 100,
        repeat: int = 1,
        batch_size: int = 1000,
        max_rounds: int = 200,
        seed: int = 0,
    ) -> None:
        self._operator = operator
        self._rtol = rtol
        self._fixed_scale = scale != "auto"
        self._scale = 1.1 * largest_eigenvalue(operator, seed) if scale == "auto" else float(scale)
        self._depth = depth
        self._repeat = repeat
        self._batch_size = min(batch_size, operator.n_terms)
        self._max_rounds = max_rounds
        self._seed = seed

    @property
    def scale(self) -> float:
        """The scale in use, after any retries."""
        return self._scale

    @property
    def batch_size(self) -> int:
        """The batch size in use, after any retries."""
        return self._batch_size

    def solve(self, right_hand_sides: np.ndarray) -> SolveResult:
        """H^-1 B for B (p, m)."""
        b = np.asarray(right_hand_sides, dtype=np.float64)
        solution = np.zeros_like(b)
        residual = b.copy()
        relative = relative_residual(residual, b)
        iterations = np.zeros(b.shape[1], dtype=np.int64)
        status = Status.CONVERGED
        retries = 0
        hopeless = ""
        for round_ in range(self._max_rounds):
            open_ = np.flatnonzero(relative > self._rtol)
            if open_.size == 0:
                break
            correction, terms = self._series(residual[:, open_], round_)
            iterations[open_] += terms
            if correction is None:
                if self._fixed_scale or retries == _RETRIES:
                    status = Status.DIVERGED
                    break
                self._scale *= 2.0
                retries += 1
                continue
            trial = solution[:, open_] + correction
            trial_residual = b[:, open_] - self._operator.apply(trial)
            trial_relative = relative_residual(trial_residual, b[:, open_])
            better = trial_relative < relative[open_]
            pace = float(np.max(trial_relative / relative[open_]))
            taken = open_[better]
            solution[:, taken] = trial[:, better]
            residual[:, taken] = trial_residual[:, better]
            # Noise, not the scale, is what keeps a round that did not grow from helping.
            slow = np.median(trial_relative / relative[open_]) > 0.5
            relative[taken] = trial_relative[better]
            whole = self._batch_size >= self._operator.n_terms
            needed = round_ + 1 + _rounds_needed(relative, self._rtol, pace)
            if whole and pace < 1.0 and round_ >= _FAIR_ROUNDS and needed > self._max_rounds:
                # A series without noise only gets slower: its slowest part is what is left.
                hopeless = f"; at the pace of the last round it takes {needed:.0f} rounds or more"
                break
            if slow and not whole:
                self._batch_size = min(4 * self._batch_size, self._operator.n_terms)
            elif not np.any(better):
                if self._fixed_scale or retries == _RETRIES:
                    status = Status.DIVERGED
                    break
                self._scale *= 2.0
                retries += 1
        if status is Status.CONVERGED and np.any(relative > self._rtol):
            status = Status.MAX_ITERATIONS
        detail = f"scale {self._scale:.4g}, batch of {self._batch_size} of {self._operator.n_terms}{hopeless}"
        return SolveResult(solution, status, iterations, relative, self._rtol, detail)

    def inverse_blocks(self) -> np.ndarray:
        """Blocks of H^-1, from one solve for every unit vector."""
        return inverse_blocks_by_solving(self, self._operator)[0]

    def flagged_inverse_blocks(self) -> tuple[np.ndarray, np.ndarray]:
        """The same, and which columns (size,) reached the tolerance: the others are as they came out."""
        return inverse_blocks_by_solving(self, self._operator, flagged=True)

    def _series(self, b: np.ndarray, round_: int) -> tuple[np.ndarray | None, int]:
        """Mean of `repeat` series for B (p, m) and the terms spent; None where one grew."""
        total = np.zeros_like(b)
        bound = _GROWTH * np.linalg.norm(b)
        n = self._operator.n_terms
        terms = 0
        for repeat in range(self._repeat):
            random = np.random.default_rng([self._seed, round_, repeat])
            x = b.copy()
            for _ in range(self._depth):
                terms += 1
                if self._batch_size >= n:
                    product = self._operator.apply(x)
                else:
                    product = self._operator.apply_sample(x, np.sort(random.integers(0, n, self._batch_size)))
                step = b - product / self._scale
                x += step
                size = np.linalg.norm(step)
                if not np.isfinite(size) or size > bound:
                    return None, terms
            total += x
        return total / (self._scale * self._repeat), terms
