"""Every loss, for tests that hold for all of them."""

from __future__ import annotations

from influence_batch.models import Logistic, Loss, SmoothHinge, Softmax, Squared


def every_loss(temperature: float) -> dict[str, Loss]:
    """The losses by name, those of the smooth hinge at a temperature."""
    return {
        "squared": Squared(1, one_hot=False),
        "one_hot": Squared(3, one_hot=True),
        "logistic": Logistic(),
        "softmax": Softmax(3),
        "hinge": SmoothHinge(1, temperature),
        "one_vs_rest": SmoothHinge(3, temperature),
    }
