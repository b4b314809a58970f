"""What `auto` takes."""

from __future__ import annotations

import pytest

from influence_batch.solvers import BlockShape
from influence_batch.solvers.choice import choose


@pytest.mark.parametrize(
    ("n", "d", "k", "memory", "expected"),
    [
        (60_000, 129, 10, 2e9, "direct"),
        (60_000, 129, 10, 1e6, "ekfac"),  # 540,000 solves for leverages, each many passes
        (500, 3_000, 2, 1e6, "cg"),
        (1_280_000, 513, 1_000, 6e9, "ekfac"),
    ],
)
def test_auto(n: int, d: int, k: int, memory: float, expected: str) -> None:
    made = choose("auto", BlockShape(1, k * d, 1), n=n, d=d, k=k, test_points=100, memory=memory)
    assert made.kind == expected
    if expected == "ekfac":
        assert "approximation" in made.reason
        assert "flops for cg" in made.reason
