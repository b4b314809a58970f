"""What a run's figures are in a sentence."""

from __future__ import annotations

import pytest

from flows.sentences import estimated_errors


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        ((61.23, 40.8, 94.0), "61 (between 41 and 94)"),
        ((4.0, 0.04, 12.5), "4.0 (between 0.0 and 12)"),
        ((9.94, 9.96, 1234.5), "9.9 (between 10 and 1,234)"),
    ],
)
def test_an_interval_has_even_digits(figures: tuple[float, float, float], said: str) -> None:
    names = ("estimated_errors", "estimated_errors_low", "estimated_errors_high")
    assert estimated_errors(dict(zip(names, figures, strict=True))) == said
