"""Predicted against real change of test losses when training examples are left out.

    python tests/benchmarks/retraining.py path/to/mnist.npz

MNIST, ten classes, softmax with l2 0.001 and an intercept that is not penalised, pixels / 255: the
model is fitted again without each of some training examples, and the change of every test point's
loss compared with its influence. Prints Pearson correlation and slope, real change on prediction.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from influence_batch.execution import InProcessExecutor
from influence_batch.influence import Objective, TestBlock, fit, train_influence
from influence_batch.influence.cross import test_gradients
from influence_batch.models import linear, make_loss
from influence_batch.solvers import Direct

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.conftest import ArraySource


@dataclass(frozen=True)
class Agreement:
    correlation: float
    slope: float


def measure(
    mnist: dict[str, np.ndarray], n_train: int, n_test: int, n_left_out: int, seed: int = 0
) -> dict[str, Agreement]:
    """Agreement of both estimators with retraining, over all pairs of left-out example and test point."""
    features, targets = design(mnist["x_train"], n_train), mnist["y_train"][:n_train].astype(np.int64)
    test, test_targets = design(mnist["x_test"], n_test), mnist["y_test"][:n_test].astype(np.int64)
    penalty = np.full(features.shape[1], 1e-3)
    penalty[-1] = 0.0
    loss = make_loss("softmax", 10)

    def objective_on(rows: np.ndarray) -> Objective:
        source = ArraySource(features[rows], targets[rows])
        return Objective(source, InProcessExecutor(2**30), loss, penalty)

    everything = objective_on(np.arange(n_train))
    weights = fit(everything).weights
    inverse = Direct(everything.hessian(weights))
    train = train_influence(everything, weights, inverse, 2e9)
    block = TestBlock(test, test_targets, np.full(n_test, -1))
    solved = inverse.solve(test_gradients(everything, weights, block)).require_converged().solution
    base = loss.value(linear.logits(weights, test), test_targets)
    rows = np.sort(np.random.default_rng(seed).choice(n_train, n_left_out, replace=False))
    moved = linear.project(solved, features[rows])
    change = []
    for row in rows:
        # The preconditioner decides how many passes the way to the optimum takes, not where that is.
        without = objective_on(np.flatnonzero(np.arange(n_train) != row))
        refit = fit(without.with_near_inverse(inverse.backsolve), start=weights).weights
        change.append(loss.value(linear.logits(refit, test), test_targets) - base)
    real = np.ravel(change)
    estimates = {"first_order": train.residual, "leave_one_out": train.corrected_residual}
    return {
        name: agreement(np.einsum("ik,ikm->im", residual[rows], moved).ravel() / n_train, real)
        for name, residual in estimates.items()
    }


def design(images: np.ndarray, n: int) -> np.ndarray:
    return np.concatenate([images[:n] / 255.0, np.ones((n, 1))], axis=1)


def agreement(predicted: np.ndarray, real: np.ndarray) -> Agreement:
    return Agreement(float(np.corrcoef(predicted, real)[0, 1]), float(np.polyfit(predicted, real, 1)[0]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="mnist.npz as Keras has it")
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--left-out", type=int, default=25)
    options = parser.parse_args()
    with np.load(options.source) as data:
        mnist = {name: data[name] for name in data.files}
    for name, found in measure(mnist, options.train, options.test, options.left_out).items():
        sys.stdout.write(f"{name}: Pearson r {found.correlation:.4f}, slope {found.slope:.3f}\n")


if __name__ == "__main__":
    main()
