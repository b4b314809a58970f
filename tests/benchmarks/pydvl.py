"""Inverse Hessian and all cross-influences against pyDVL's DirectInfluence and CgInfluence.

    python tests/benchmarks/pydvl.py ../shared/data/mnist.npz --environment /tmp/pydvl

pyDVL needs an older numpy, so it runs in an environment of its own, made in --environment where there is
none (a temporary folder unless given; some 700 MB, more with a CUDA build of torch), one process a run.
Both sides get the same float64 images, the same softmax weights, fitted by this package to their optimum
with a penalty of l2 on every parameter, the intercepts' included, and the same H: pyDVL adds its
`regularization`, here l2, to the whole diagonal. Imports and the fit of the weights are not timed.

- `direct`: form and factor H, solve for all test points, all n by m influences.
- `cg`: the same for --cg-test test points by conjugate gradient, to a residual of --rtol times the norm of
  the test gradients (their median for pyDVL, which takes one residual for all); the largest true relative
  residual of each is printed. pyDVL solves one after the other; with --simultaneously by its block variant,
  which stops early: its residual was 0.4 on 600 images.

The two take turns, --runs times each. Printed are medians and ranges of the seconds, their ratio, and the
largest difference of an influence, after pyDVL's are divided by n, relative to the largest influence of its
test point.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import numpy as np

from influence_batch.dataset.shards import Shard
from influence_batch.execution import InProcessExecutor
from influence_batch.influence import Objective, TestBlock, fit, influence_of_some
from influence_batch.influence.cross import test_gradients
from influence_batch.influence.objective import OneShard
from influence_batch.models import linear, make_loss
from influence_batch.solvers import ConjugateGradient, Direct

REQUIREMENTS = ("pyDVL[influence]==0.10.0", "torch==2.13.0", "numpy<2")
PEER = Path(__file__).with_name("pydvl_peer.py")
# Our time over pyDVL's that is wanted, at most.
WANTED = {"direct": 1 / 15, "cg": 1 / 5}
_ROWS = 500


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="mnist.npz as Keras has it")
    parser.add_argument("--environment", type=Path)
    parser.add_argument("--solvers", nargs="+", choices=sorted(WANTED), default=["direct", "cg"])
    parser.add_argument("--train", type=int, default=5000)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--cg-test", type=int, default=100)
    parser.add_argument("--l2", type=float, default=1e-2)
    parser.add_argument("--rtol", type=float, default=1e-6)
    parser.add_argument("--simultaneously", action="store_true")
    parser.add_argument("--batch", type=int, default=500, help="rows that pyDVL takes at a time")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        python = environment(options.environment or Path(temporary) / "environment")
        objective, weights, points = problem(options)
        sys.stdout.write(f"{options.train} training and {options.test} test images, l2 = {options.l2:g}\n")
        for kind in options.solvers:
            m = options.test if kind == "direct" else options.cg_test
            some = TestBlock(*(array[:m] for array in points))
            compare(kind, objective, weights, some, python, Path(temporary), options)


def environment(folder: Path) -> Path:
    """The Python of an environment with pyDVL; made where there is none."""
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        venv.create(folder, with_pip=True)
    if subprocess.run([python, "-c", "import pydvl.influence.torch"], capture_output=True).returncode:
        subprocess.run([python, "-m", "pip", "install", "-q", *REQUIREMENTS], check=True)
    return python


def problem(options: argparse.Namespace) -> tuple[Objective, np.ndarray, tuple[np.ndarray, ...]]:
    """The objective, its weights (k, d), and the test points: features, targets, rows in train (none)."""
    with np.load(options.source) as data:
        parts = {}
        for part, count in (("train", options.train), ("test", options.test)):
            pixels = data[f"x_{part}"].reshape(-1, 784)[:count] / 255.0
            ones = np.ones((len(pixels), 1))
            parts[part] = np.concatenate([pixels, ones], axis=1), data[f"y_{part}"][:count].astype(np.int64)
    features, labels = parts["train"]
    objective = Objective(
        OneShard(Shard(0, features, labels)),  # type: ignore[arg-type]
        InProcessExecutor(2**30),
        make_loss("softmax", 10, 1.0),
        np.full(features.shape[1], options.l2),
    )
    points = (*parts["test"], np.full(options.test, -1))
    return objective, fit(objective).weights, points


def compare(
    kind: str,
    objective: Objective,
    weights: np.ndarray,
    points: TestBlock,
    python: Path,
    folder: Path,
    options: argparse.Namespace,
) -> None:
    shard = objective.dataset.load(0)
    sides = test_gradients(objective, weights, points)
    problem_file, result_file = folder / "problem.npz", folder / "influences.npz"
    np.savez(
        problem_file,
        features=shard.features[:, :-1],
        labels=shard.targets,
        test_features=points.features[:, :-1],
        test_labels=points.targets,
        coef=weights[:, :-1],
        intercept=weights[:, -1],
        l2=options.l2,
        tolerance=options.rtol * np.median(np.linalg.norm(sides, axis=0)),
        simultaneously=options.simultaneously,
        batch=options.batch,
    )
    seconds: dict[str, list[float]] = {"ours": [], "pyDVL": []}
    for _ in range(options.runs):
        start = time.perf_counter()
        ours, solution = influences(kind, objective, weights, points, options.rtol)
        seconds["ours"].append(time.perf_counter() - start)
        # -P: this file would be found in the place of the package.
        command = [python, "-P", PEER, problem_file, result_file, kind]
        result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
        told: dict[str, Any] = json.loads(result.stdout)
        seconds["pyDVL"].append(told["seconds"])
    theirs = np.load(result_file)
    medians = {name: float(np.median(found)) for name, found in seconds.items()}
    line = f"{kind}, {len(points.targets)} test points\n"
    for name, found in seconds.items():
        line += f"  {name:6s}{medians[name]:8.2f} s ({min(found):.2f} to {max(found):.2f})\n"
    ratio = medians["pyDVL"] / medians["ours"]
    line += f"  pyDVL takes {ratio:.1f} times as long; wanted: {1 / WANTED[kind]:.0f}\n"
    difference = np.abs(ours - theirs["influences"].T / len(shard.targets)) / np.abs(ours).max(axis=0)
    line += f"  largest difference of an influence {difference.max():.2g}\n"
    # pyDVL's parameters are the weights, row by row, then the intercepts.
    k, d = weights.shape
    factors = theirs["factors"].T
    coef, intercept = factors[: k * (d - 1)].reshape(k, d - 1, -1), factors[k * (d - 1) :].reshape(k, 1, -1)
    their_solution = np.concatenate([coef, intercept], axis=1).reshape(k * d, -1)
    for name, found_solution in (("ours", solution), ("pyDVL", their_solution)):
        rest = sides - objective.hessian(weights).apply(found_solution)
        residual = np.linalg.norm(rest, axis=0) / np.linalg.norm(sides, axis=0)
        line += f"  largest relative residual, {name}: {residual.max():.2g}\n"
    sys.stdout.write(line)
    sys.stdout.flush()


def influences(
    kind: str, objective: Objective, weights: np.ndarray, points: TestBlock, rtol: float
) -> tuple[np.ndarray, np.ndarray]:
    """Influences (n, m) and H^-1 of the test gradients (p, m)."""
    hessian = objective.hessian(weights)
    inverse = Direct(hessian) if kind == "direct" else ConjugateGradient(hessian, rtol=rtol)
    solution = inverse.solve(test_gradients(objective, weights, points)).require_converged().solution
    shard = objective.dataset.load(0)
    residual = objective.loss.residual(linear.logits(weights, shard.features), shard.targets)
    n, solutions = len(shard.targets), solution.T.reshape(-1, *weights.shape)
    parts = [
        influence_of_some(shard.features[i : i + _ROWS], residual[i : i + _ROWS], solutions, n)
        for i in range(0, n, _ROWS)
    ]
    return np.concatenate(parts), solution


if __name__ == "__main__":
    main()
