"""How far a refit's leave-one-out probabilities are from those of its own Hessian, by two ways without it.

    pip install '.[benchmarks]'
    python tests/benchmarks/refit.py embeddings --rows 60000 --noise 0.05

Labels are flipped at random; the refit leaves out the flipped ones, as a perfect first reading would. Of
the others' probabilities of all classes the largest difference from the exact ones is printed, mean and
quantiles, for Kronecker factors of the refit alone (`ekfac`) and for leverages rescaled from the first fit's.
`apart` is what an audit sees and decides by. The data are those of `speed.py`.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from detection import L2, flipped
from speed import DATASETS

from influence_batch.execution import InProcessExecutor
from influence_batch.execution.parts import InMemoryStore
from influence_batch.influence import Objective, fit, rescaled_influence, train_influence
from influence_batch.models.losses import Softmax, softmax
from influence_batch.solvers import Deferred, Direct, Ekfac

# Run as a script, the project's root is not on the path.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.conftest import ArraySource


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("dataset", choices=sorted(DATASETS))
    parser.add_argument("--rows", type=int, default=60_000, help="at most so many, the first")
    parser.add_argument("--noise", type=float, default=0.05)
    options = parser.parse_args()
    features, labels = (array[: options.rows] for array in DATASETS[options.dataset]())
    n, k = len(labels), int(labels.max()) + 1
    given = flipped("uniform", options.noise, labels, np.zeros((n, k)), 0)
    penalty = np.full(features.shape[1] + 1, L2)
    penalty[-1] = 0.0
    source = ArraySource(np.concatenate([features, np.ones((n, 1))], axis=1), given)
    first = Objective(source, InProcessExecutor(2**34), Softmax(k), penalty).with_single(True)
    second = replace(first, example_weights=(given == labels).astype(np.float32))
    before = fit(first).weights
    after = fit(second, start=before).weights
    hessian, own = first.hessian(before), second.hessian(after)
    known = train_influence(first, before, Direct(hessian), 1e12, with_leverages=True)  # type: ignore[arg-type]
    exact = train_influence(second, after, Direct(own), 1e12)  # type: ignore[arg-type]
    near = train_influence(second, after, Deferred(lambda: Ekfac(own)), 1e12)
    rescaled, apart = rescaled_influence(
        second, after, hessian.kronecker(), first.n, known.leverages, InMemoryStore(), "refit"
    )
    kept = given == labels
    true = softmax(np.asarray(exact.loo_logits[:]))
    sys.stdout.write(f"{options.dataset}, {n} rows, {options.noise:.0%} flipped; apart {apart:.2g}\n")
    for name, found in (("ekfac", near), ("rescaled", rescaled)):
        off = np.abs(softmax(np.asarray(found.loo_logits[:])) - true).max(axis=1)[kept]
        quantiles = ", ".join(f"{np.quantile(off, q):.2g} ({q:.1%})" for q in (0.99, 0.999))
        sys.stdout.write(f"  {name:9s} {off.mean():.2g} (mean), {quantiles}, {off.max():.2g} (most)\n")


if __name__ == "__main__":
    main()
