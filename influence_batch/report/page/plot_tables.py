"""The figures of each plot as a table, for those who have no pointer or do not see it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from influence_batch.report.page.plots import MOST_NIGHTS, Distribution, Reviewed, clipped, short
from influence_batch.report.page.templates import environment
from influence_batch.report.page.words import percent

# Pairs of labels of the noise matrix, those with the most errors first.
_MOST_PAIRS = 100
_UNKNOWN = "\N{EN DASH}"


def distribution_table(found: Distribution) -> Markup:
    """Of `plots.distribution`."""
    step = 1.0 / len(found.counts)
    bins = list(zip(found.counts.tolist(), found.expected.tolist(), strict=True))
    rows = [
        (f"{step * i:.2f} to {step * (i + 1):.2f}", f"{count:,}", short(wrong))
        for i, (count, wrong) in enumerate(bins)
        if i and count
    ]
    return _table("probabilities", ("p_mislabeled", "Rows", "Wrong, about"), rows)


def reliability_table(points: Sequence[Reviewed]) -> Markup:
    """Of `plots.reliability`."""
    rows = [
        (
            f"{point.predicted:.2f}",
            f"{point.rows:,}",
            percent(point.wrong),
            f"{percent(point.low)} to {percent(point.high)}",
        )
        for point in points
    ]
    return _table("verdicts", ("Mean p_mislabeled", "Reviewed", "Found wrong", "95% interval"), rows)


def depths_table(depths: Mapping[str, Sequence[Any]]) -> Markup:
    """Of `plots.precision_and_power`."""
    kinds = {"power_random": "Finds, any label", "power_nearest": "Finds, most confusable label"}
    kinds = {name: said for name, said in kinds.items() if any(one is not None for one in depths[name])}
    rows = [
        (
            f"{depth:,}" + (" (the list)" if depths["is_list"][i] else ""),
            _share(depths["estimated_precision"][i]),
            *(_share(depths[name][i], depths[f"{name}_low"][i], depths[f"{name}_high"][i]) for name in kinds),
        )
        for i, depth in enumerate(depths["depth"])
    ]
    return _table("length of the list", ("Rows from the top", "Wrong, as estimated", *kinds.values()), rows)


def trend_table(history: pd.DataFrame) -> Markup:
    """Of `plots.trend_of_errors` and `plots.trend_of_states`, the last night first."""
    states = [name for name in ("new", "reopened", "persisting", "resolved") if name in history]
    rows = [
        (
            f"{night['started']:%-d %b %Y, %H:%M}",
            f"{_count(night['estimated_errors'])} ({_count(night['estimated_errors_low'])} to "
            f"{_count(night['estimated_errors_high'])})",
            *(_count(night[name]) for name in ("n_suspects", *states)),
        )
        for _, night in history.tail(MOST_NIGHTS)[::-1].iterrows()
    ]
    names = ("Night, UTC", "Wrong, about", "On the list", *(name.capitalize() for name in states))
    more = len(history) - len(rows)
    said = f"{more:,} earlier {'night' if more == 1 else 'nights'}: influence-batch history."
    return _table("trend", names, rows, said if more else None)


def flows_table(labels: Sequence[str], flows: np.ndarray) -> Markup:
    """Of `plots.heat_map`: pairs of labels that have errors at all, the most first."""
    largest = np.argsort(-flows, axis=None, kind="stable")[: int(np.count_nonzero(flows))]
    places = [divmod(int(at), len(labels)) for at in largest[:_MOST_PAIRS]]
    labels = [clipped(label or "(empty)") for label in labels]
    rows = [(labels[true], labels[given], short(flows[true, given])) for true, given in places]
    more = len(largest) - len(places)
    said = f"{more:,} {'pair' if more == 1 else 'pairs'} with fewer in noise_matrix.parquet."
    names = ("True label", "Given label", "Wrong, about")
    return _table("noise matrix", names, rows, said if more else None, words=2)


def _table(
    plot: str,
    names: Sequence[str],
    rows: Iterable[Sequence[str]],
    more: str | None = None,
    words: int = 1,
) -> Markup:
    """A table that opens at a key.

    Args:
        plot: what it has the figures of.
        names: of the columns.
        more: what it leaves out, in a sentence.
        words: how many of the first columns are words; the others are numbers.
    """
    template = environment().get_template("plot_table.html.j2")
    return Markup(template.render(plot=plot, names=names, rows=list(rows), more=more, words=words))


def _share(value: float | None, low: float | None = None, high: float | None = None) -> str:
    if value is None:
        return _UNKNOWN
    ends = f" ({percent(low)} to {percent(high)})" if low is not None and high is not None else ""
    return percent(value) + ends


def _count(value: Any) -> str:
    return _UNKNOWN if pd.isna(value) else short(float(value))
