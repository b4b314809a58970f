"""Small problems with every loss, shared by the tests of this folder."""

from __future__ import annotations

import numpy as np

from influence_batch.execution import InProcessExecutor
from influence_batch.influence import Objective
from influence_batch.models import make_loss
from tests.conftest import ArraySource

# name: (model.kind, number of classes)
_LOSSES: dict[str, tuple[str, int | None]] = {
    "squared": ("squared", None),
    "one_hot": ("squared", 3),
    "logistic": ("logistic", 2),
    "softmax": ("softmax", 3),
    "smooth_hinge": ("smooth_hinge", 2),
    "one_vs_rest": ("smooth_hinge", 3),
}
KINDS = tuple(_LOSSES)


def problem(
    kind: str, n: int = 60, d: int = 4, l2: float = 0.05, seed: int = 0
) -> tuple[Objective, ArraySource]:
    """An objective with an intercept that is not penalised, on noisy classes or numbers."""
    model, classes = _LOSSES[kind]
    truth = np.random.default_rng(7).standard_normal((classes or 1, d + 1))
    random = np.random.default_rng(seed)
    features = np.concatenate([random.standard_normal((n, d)), np.ones((n, 1))], axis=1)
    # Without the truth's intercept no class is rare.
    scores = features[:, :-1] @ truth[:, :-1].T + 0.7 * random.standard_normal((n, classes or 1))
    targets = scores[:, 0] if classes is None else scores.argmax(axis=1)
    penalty = np.full(d + 1, l2)
    penalty[-1] = 0.0
    source = ArraySource(features, targets)
    return Objective(source, InProcessExecutor(2**24), make_loss(model, classes, 0.5), penalty), source
