"""Losses as functions of the logits.

Each has a value, a residual `r = dloss/df` and a logit curvature `C = d2loss/df2`. For n examples
and k logits: logits (n, k); targets (n,), class codes 0, 1, ... or numbers; values (n,);
residuals (n, k). Where the logits do not interact (`separable`), only the diagonal of C is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import expit


class Loss(Protocol):
    """A loss on logits; see the module's docstring for shapes."""

    @property
    def outputs(self) -> int:
        """k, the number of logits."""
        ...

    @property
    def separable(self) -> bool:
        """Whether C is diagonal."""
        ...

    @property
    def constant_curvature(self) -> bool:
        """Whether C is the same for every example, logit and parameter."""
        ...

    def value(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Loss of each example (n,)."""
        ...

    def residual(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Gradient of each loss by its logits (n, k)."""
        ...

    def curvature(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """C (n, k, k), or its diagonal (n, k) where the loss is separable."""
        ...

    def curvature_product(self, logits: np.ndarray, targets: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """C v for `vectors` (n, k, m), without forming C."""
        ...

    def class_scores(self, logits: np.ndarray) -> np.ndarray:
        """Scores (n, classes) whose softmax at some temperature gives class probabilities."""
        ...


def softmax(logits: np.ndarray) -> np.ndarray:
    """Class probabilities (n, k). scipy's takes any array of any library, and three times as long."""
    by_logit, _, total = _exponentials(logits)
    by_logit /= total
    return np.ascontiguousarray(by_logit.T)


def _exponentials(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """exp(f - max f) (k, n), the largest logit (n,), and the exponentials' sum (n,)."""
    # numpy reduces the first axis several times as fast as a short last one.
    by_logit = np.ascontiguousarray(logits.T)
    largest = by_logit.max(axis=0)
    by_logit = by_logit - largest
    np.exp(by_logit, out=by_logit)
    return by_logit, largest, by_logit.sum(axis=0)


@dataclass(frozen=True)
class Softmax:
    """Cross-entropy of softmax: -log p_y, with p = softmax(f), r = p - e_y, C = diag(p) - p p'."""

    outputs: int
    separable: bool = False
    constant_curvature: bool = False

    def value(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return self.value_and_residual(logits, targets)[0]

    def residual(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self.value_and_residual(logits, targets)[1])

    def value_and_residual(self, logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Both from the same exponentials."""
        by_logit, largest, total = _exponentials(logits)
        at = np.arange(len(targets))
        value = np.log(total) + largest - logits[at, targets]
        by_logit /= total
        by_logit[targets, at] -= 1.0
        return value, by_logit.T

    def curvature(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        p = softmax(logits)
        curvature = -p[:, :, None] * p[:, None, :]
        diagonal = np.arange(self.outputs)
        curvature[:, diagonal, diagonal] += p
        return curvature

    def curvature_product(self, logits: np.ndarray, targets: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        p = softmax(logits)
        # einsum makes no second (n, k, m) array, and is several times as fast as a sum over a middle axis.
        moved: np.ndarray = vectors - np.einsum("ik,ikm->im", p, vectors)[:, None, :]
        moved *= p[:, :, None]
        return moved

    def class_scores(self, logits: np.ndarray) -> np.ndarray:
        return logits


@dataclass(frozen=True)
class Logistic:
    """Logistic loss of two classes: log(1 + exp(f)) - y f, y in {0, 1}; r = s(f) - y, C = s(1 - s)."""

    outputs: int = 1
    separable: bool = True
    constant_curvature: bool = False

    def value(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        f = logits[:, 0]
        return np.logaddexp(0.0, f) - targets * f

    def residual(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return expit(logits) - targets[:, None]

    def curvature(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return expit(logits) * expit(-logits)

    def curvature_product(self, logits: np.ndarray, targets: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return self.curvature(logits, targets)[:, :, None] * vectors

    def class_scores(self, logits: np.ndarray) -> np.ndarray:
        return np.concatenate([np.zeros_like(logits), logits], axis=1)


@dataclass(frozen=True)
class Squared:
    """Half the squared error, |f - y|^2 / 2: r = f - y, C = I.

    For classes y is the one-hot code of the label; for regression a number, and k = 1.
    """

    outputs: int
    one_hot: bool
    separable: bool = True
    constant_curvature: bool = True

    def value(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return 0.5 * np.square(self.residual(logits, targets)).sum(axis=1)

    def residual(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        if not self.one_hot:
            return logits - targets[:, None]
        residual = logits.copy()
        residual[np.arange(len(targets)), targets] -= 1.0
        return residual

    def curvature(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        return np.ones_like(logits)

    def curvature_product(self, logits: np.ndarray, targets: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return vectors

    def class_scores(self, logits: np.ndarray) -> np.ndarray:
        return logits


@dataclass(frozen=True)
class SmoothHinge:
    """Smoothed hinge loss t log(1 + exp((1 - s f) / t)), s in {-1, 1} (Koh and Liang 2017, section 4.2).

    With u = (1 - s f) / t: r = -s sigmoid(u), C = sigmoid(u) sigmoid(-u) / t. One logit for two
    classes; beyond two, one against the rest, the losses of the k logits added.
    """

    outputs: int
    temperature: float
    separable: bool = True
    constant_curvature: bool = False

    def _signs(self, targets: np.ndarray) -> np.ndarray:
        if self.outputs == 1:
            return (2.0 * targets - 1.0)[:, None]
        signs = np.full((len(targets), self.outputs), -1.0)
        signs[np.arange(len(targets)), targets] = 1.0
        return signs

    def value(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        t = self.temperature
        return t * np.logaddexp(0.0, (1.0 - self._signs(targets) * logits) / t).sum(axis=1)

    def residual(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        signs = self._signs(targets)
        return -signs * expit((1.0 - signs * logits) / self.temperature)

    def curvature(self, logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
        u = (1.0 - self._signs(targets) * logits) / self.temperature
        return expit(u) * expit(-u) / self.temperature

    def curvature_product(self, logits: np.ndarray, targets: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        return self.curvature(logits, targets)[:, :, None] * vectors

    def class_scores(self, logits: np.ndarray) -> np.ndarray:
        return np.concatenate([-logits, logits], axis=1) if self.outputs == 1 else logits


def value_and_residual(loss: Loss, logits: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Losses (n,) and residuals (n, k)."""
    if isinstance(loss, Softmax):
        return loss.value_and_residual(logits, targets)
    return loss.value(logits, targets), loss.residual(logits, targets)


def curvature_entries(
    loss: Loss, logits: np.ndarray, targets: np.ndarray
) -> Callable[[int, int, slice], np.ndarray]:
    """(a, b, rows) -> C[rows, a, b], without all of C (n, k, k) where that can be done."""
    if isinstance(loss, Softmax):
        p, _, total = _exponentials(logits)
        p /= total
        return lambda a, b, rows: p[a, rows] * (1.0 - p[a, rows] if a == b else -p[b, rows])
    curvature = loss.curvature(logits, targets)
    return lambda a, b, rows: curvature[rows, a, b]


def curvature_sum(loss: Loss, logits: np.ndarray, targets: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Sum of the examples' C (k, k), or of its diagonal (k,), each counted `counts` (n,) times."""
    if not isinstance(loss, Softmax):
        total: np.ndarray = counts @ loss.curvature(logits, targets)
        return total
    p = softmax(logits)
    total = -(p.T @ (p * counts[:, None]))
    total[np.diag_indices_from(total)] += counts @ p
    return total


def curvature_forms(loss: Loss, logits: np.ndarray, targets: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """`r_a' C r_a` (n, k) for the columns of `basis` (k, k)."""
    if not isinstance(loss, Softmax):
        return loss.curvature(logits, targets) @ np.square(basis)
    p = softmax(logits)
    # The variance under p of a vector's entries, which no shift of them changes.
    centered = basis - basis.mean(axis=0)
    forms: np.ndarray = p @ np.square(centered) - np.square(p @ centered)
    return np.maximum(forms, 0.0)


def make_loss(kind: str, n_classes: int | None, temperature: float = 0.1) -> Loss:
    """The loss of a config's `model.kind`.

    Args:
        kind: `squared`, `logistic`, `softmax` or `smooth_hinge`.
        n_classes: number of classes, None for regression (`squared` only).
        temperature: of `smooth_hinge`.

    Raises:
        ValueError: where the kind does not fit the number of classes.
    """
    if kind == "squared":
        return Squared(outputs=1 if n_classes is None else n_classes, one_hot=n_classes is not None)
    if n_classes is None:
        raise ValueError(f"{kind} is a model of classes, not of numbers")
    if kind == "logistic":
        if n_classes != 2:
            raise ValueError(f"logistic takes two classes, found {n_classes}")
        return Logistic()
    if kind == "softmax":
        return Softmax(n_classes)
    if kind == "smooth_hinge":
        return SmoothHinge(1 if n_classes == 2 else n_classes, temperature)
    raise ValueError(f"unknown model kind {kind!r}")


def predict(loss: Loss, logits: np.ndarray) -> np.ndarray:
    """Predicted class codes (n,), or numbers for regression."""
    if isinstance(loss, Squared) and not loss.one_hot:
        return logits[:, 0]
    return loss.class_scores(logits).argmax(axis=1)
