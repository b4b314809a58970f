"""The plots of the page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from influence_batch.report.page.svg import Frame, axes, band, chart, element, line, log_place, nice_ticks

# Classes in the heat map, those with the most errors first.
MOST_CLASSES = 20
# As many are no wider than half the page, however long their names.
NARROW_CLASSES = 12
MOST_NIGHTS = 60
# Characters of a label beside a plot.
_TICK = 14
_SHARES = [(0.0, "0"), (0.25, "25%"), (0.5, "50%"), (0.75, "75%"), (1.0, "100%")]


@dataclass(frozen=True)
class Distribution:
    """Examples by p_mislabeled, in bins of equal width from 0 to 1: how many, and the sum of p_mislabeled."""

    counts: np.ndarray
    expected: np.ndarray


@dataclass(frozen=True)
class Reviewed:
    """Reviewed rows of one range of p_mislabeled: its mean, how many, share wrong, its 95% interval."""

    predicted: float
    rows: int
    wrong: float
    low: float
    high: float


def short(value: float) -> str:
    """A number with three digits: 1,234, 56.1, 0.0123."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def clipped(name: str, most: int = 60) -> str:
    """A name of at most so many characters: a label may be as long as a page."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def distribution(found: Distribution) -> Markup:
    """Bars by p_mislabeled: rows, and among them the expected number of wrong labels.

    The lowest bin is left out: it holds nearly everything.
    """
    frame = Frame()
    counts, expected = found.counts[1:], found.expected[1:]
    bins = len(found.counts)
    ticks = nice_ticks(float(counts.max(initial=1)))
    top = ticks[-1]
    step = 1.0 / bins
    bars = []
    for i, (rows, wrong) in enumerate(zip(counts.tolist(), expected.tolist(), strict=True)):
        if not rows:
            continue
        x, width = frame.x(step * (i + 1)) + 1.0, frame.x(step) - frame.x(0) - 2.0
        low = step * (i + 1)
        said = f"{rows:,} rows of p_mislabeled {low:.2f} to {low + step:.2f}, {short(wrong)} expected wrong"
        for amount, class_ in ((rows, "bar-rest"), (wrong, "bar")):
            y = frame.y(amount / top)
            bars.append(
                element(
                    "rect",
                    element("title", said),
                    x=x,
                    y=y,
                    width=width,
                    height=max(frame.y0 - y, 0.5),
                    class_=class_,
                )
            )
    x_ticks = [(share, f"{share:g}") for share in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)]
    y_ticks = [(tick / top, short(tick)) for tick in ticks]
    return chart(
        frame,
        "Rows by p_mislabeled, and the expected number of wrong labels among them",
        *axes(frame, x_ticks, y_ticks, "p_mislabeled", "rows"),
        *bars,
    )


def reliability(points: Sequence[Reviewed]) -> Markup:
    """Share of labels that reviewers found wrong against the probability that was told."""
    frame = Frame()
    parts = [
        element(
            "line", x1=frame.x(0), y1=frame.y(0), x2=frame.x(1), y2=frame.y(1), class_="diagonal"
        )
    ]  # fmt: skip
    for point in points:
        x = frame.x(point.predicted)
        said = (
            f"{point.rows} reviewed rows of mean p_mislabeled {point.predicted:.2f}: {point.wrong:.0%} "
            f"wrong (95% interval {point.low:.0%} to {point.high:.0%})"
        )
        parts.append(
            element("line", x1=x, x2=x, y1=frame.y(point.low), y2=frame.y(point.high), class_="whisker")
        )
        parts.append(
            element("circle", element("title", said), cx=x, cy=frame.y(point.wrong), r=4, class_="dot")
        )
    x_ticks = [(share, f"{share:g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return chart(
        frame,
        "Share of labels that reviewers found wrong against p_mislabeled; on the diagonal they agree",
        *axes(frame, x_ticks, _SHARES, "p_mislabeled", "found wrong"),
        *parts,
    )


def precision_and_power(depths: dict[str, list[Any]]) -> Markup:
    """Estimated precision, and power to find planted errors, against the length of the list."""
    frame = Frame()
    depth = depths["depth"]
    place = log_place(depth[0], depth[-1])
    parts: list[Markup] = []
    for name, class_ in (("power_random", "s2"), ("power_nearest", "s3")):
        rows = [
            (frame.x(place(d)), low, high, middle)
            for d, middle, low, high in zip(
                depth, depths[name], depths[f"{name}_low"], depths[f"{name}_high"], strict=True
            )
            if middle is not None
        ]
        if rows:
            low = [(x, frame.y(value)) for x, value, _, _ in rows]
            high = [(x, frame.y(value)) for x, _, value, _ in rows]
            parts.append(band(low, high, f"band {class_}"))
            parts.append(line([(x, frame.y(value)) for x, _, _, value in rows], f"line {class_}"))
    precise = [
        (frame.x(place(d)), frame.y(value))
        for d, value in zip(depth, depths["estimated_precision"], strict=True)
        if value is not None
    ]
    parts.append(line(precise, "line s1"))
    for d, own in zip(depth, depths["is_list"], strict=True):
        if own:
            x = frame.x(place(d))
            parts.append(element("line", x1=x, x2=x, y1=frame.y0, y2=frame.y1, class_="mark"))
            side = "end" if place(d) > 0.75 else "start"
            at = x - 5 if side == "end" else x + 5
            parts.append(
                element(
                    "text", f"the list: {d:,}", x=at, y=frame.y0 - 7, text_anchor=side, class_="tick strong"
                )
            )
    powers = [10**power for power in range(1, 12) if depth[0] <= 10**power <= depth[-1]]
    x_ticks = [(place(value), f"{value:,}") for value in (powers or [depth[0], depth[-1]])]
    return chart(
        frame,
        "Estimated precision of the list, and share of planted errors that it holds, by its length",
        *axes(frame, x_ticks, _SHARES, "rows from the top of the list (logarithmic)", ""),
        *parts,
    )


def heat_map(classes: Sequence[str], flows: np.ndarray) -> Markup:
    """Expected number of labels that went from a class (row) to another label (column), (k, k)."""
    k = len(classes)
    longest = max(len(clipped(name, _TICK)) for name in classes)
    left = 34.0 + 6.4 * longest
    # As wide as half the page where that leaves room for figures: it is never drawn smaller than it is.
    slant = 4.8 * longest
    cell = float(np.clip((485.0 - left - slant) / k, 24.0, 60.0))
    rotate = longest * 6.4 > cell
    top = 30.0 + (6.4 * longest * 0.8 if rotate else 10.0)
    most = float(flows.max(initial=0.0)) or 1.0
    parts: list[Markup] = [
        element(
            "text", "given label", x=left + k * cell / 2, y=11.0, text_anchor="middle", class_="axis-label"
        ),
        element(
            "text", "true label", x=11.0, y=top + k * cell / 2, text_anchor="middle", class_="axis-label",
            transform=f"rotate(-90 11 {top + k * cell / 2:.1f})",
        ),
    ]  # fmt: skip
    for i, name in enumerate(classes):
        middle = top + (i + 0.5) * cell
        parts.append(
            element(
                "text", clipped(name, _TICK), x=left - 6, y=middle + 3.5, text_anchor="end", class_="tick"
            )
        )
        x = left + (i + 0.5) * cell
        turn = f"rotate(-45 {x:.1f} {top - 6:.1f})" if rotate else None
        anchor = "start" if rotate else "middle"
        parts.append(
            element(
                "text",
                clipped(name, _TICK),
                x=x,
                y=top - 6,
                text_anchor=anchor,
                class_="tick",
                transform=turn,
            )
        )
        for j, other in enumerate(classes):
            if i == j:
                continue
            value = float(flows[i, j])
            said = f"{clipped(name)} given as {clipped(other)}: {short(value)} expected"
            share = value / most
            x0, y0 = left + j * cell, top + i * cell
            parts.append(
                element(
                    "rect", element("title", said), x=x0 + 0.5, y=y0 + 0.5, width=cell - 1, height=cell - 1,
                    rx=2, class_="cell", fill_opacity=f"{0.04 + 0.96 * share**0.7:.3f}",
                )
            )  # fmt: skip
            if cell >= 30 and value >= 0.05 * most:
                words = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
                parts.append(
                    element(
                        "text", words, x=x0 + cell / 2, y=y0 + cell / 2 + 3.5, text_anchor="middle",
                        class_="cell-text",
                    )
                )  # fmt: skip
    right = left + k * cell + (slant if rotate else 6.0)
    # Whole pixels: a fraction would be rounded off, and all letters made smaller by it.
    frame = Frame(width=float(np.ceil(right)), height=float(np.ceil(top + k * cell + 6.0)))
    words = "Expected number of wrong labels by true label and given label; the table below has the figures"
    return chart(frame, words, *parts, natural=True)


def trend_of_errors(history: pd.DataFrame) -> Markup:
    """Estimated errors with their range, and the length of the list, by night."""
    frame, nights, place, x_ticks = _nights(history)
    tops = [*nights["estimated_errors_high"].dropna(), *nights["n_suspects"].dropna()]
    ticks = nice_ticks(float(max(tops, default=1.0)))
    top = ticks[-1]

    def points(name: str) -> list[tuple[float, float]]:
        values = nights[name].to_numpy(dtype=float)
        return [(place(i), frame.y(value / top)) for i, value in enumerate(values) if np.isfinite(value)]

    y_ticks = [(tick / top, short(tick)) for tick in ticks]
    return chart(
        frame,
        "Estimated wrong labels with their range, and rows on the list, by night",
        *axes(frame, x_ticks, y_ticks, "", ""),
        band(points("estimated_errors_low"), points("estimated_errors_high"), "band s1"),
        line(points("estimated_errors"), "line s1"),
        line(points("n_suspects"), "line s2"),
        *(element("circle", cx=x, cy=y, r=3, class_="dot") for x, y in points("estimated_errors")),
    )


def trend_of_states(history: pd.DataFrame) -> Markup:
    """Bars by night: persisting, reopened and new rows above the axis, resolved ones below."""
    frame, nights, place, x_ticks = _nights(history)
    columns = {
        name: np.nan_to_num(nights[name].to_numpy(dtype=float)) if name in nights else np.zeros(len(nights))
        for name in ("persisting", "reopened", "new", "resolved")
    }
    listed = columns["persisting"] + columns["reopened"] + columns["new"]
    ticks = nice_ticks(float(listed.max()))
    down = nice_ticks(float(columns["resolved"].max()))[-1] if columns["resolved"].any() else 0.0
    top = ticks[-1] + down
    width = min(28.0, 0.6 * (frame.x1 - frame.x0) / len(nights))
    bars = []
    for i in range(len(nights)):
        at = down
        for name, class_ in (("persisting", "bar-rest"), ("reopened", "bar s3"), ("new", "bar s2")):
            amount = float(columns[name][i])
            if amount:
                bars.append(
                    _bar(
                        frame, place(i), width, at / top, (at + amount) / top, class_, f"{amount:,.0f} {name}"
                    )
                )
            at += amount
        gone = float(columns["resolved"][i])
        if gone:
            bars.append(
                _bar(
                    frame, place(i), width, (down - gone) / top, down / top, "bar s4", f"{gone:,.0f} resolved"
                )
            )
    y_ticks = [((tick + down) / top, short(tick)) for tick in ticks] + ([(0.0, short(down))] if down else [])
    return chart(
        frame,
        "Rows on the list that are new, reopened or persisting, and rows that were resolved, by night",
        *axes(frame, x_ticks, y_ticks, "", ""),
        element(
            "line", x1=frame.x0, x2=frame.x1, y1=frame.y(down / top), y2=frame.y(down / top), class_="axis"
        ),
        *bars,
    )


def _bar(frame: Frame, x: float, width: float, low: float, high: float, class_: str, said: str) -> Markup:
    y = frame.y(high)
    return element(
        "rect", element("title", said), x=x - width / 2, y=y, width=width, height=max(frame.y(low) - y, 0.5),
        class_=class_,
    )  # fmt: skip


def _nights(history: pd.DataFrame) -> tuple[Frame, pd.DataFrame, Any, list[tuple[float, str]]]:
    frame = Frame(top=12.0, bottom=28.0)
    nights = history.tail(MOST_NIGHTS).reset_index(drop=True)
    n = len(nights)
    inset = 24.0

    def place(i: int) -> float:
        return frame.x0 + inset + (frame.x1 - frame.x0 - 2 * inset) * (i / (n - 1) if n > 1 else 0.5)

    days = pd.to_datetime(nights["started"]).dt.strftime("%-d %b").tolist()
    every = max(1, -(-n // 6))
    span = frame.x1 - frame.x0
    ticks = [((place(i) - frame.x0) / span, days[i]) for i in range(n - 1, -1, -every)]
    return frame, nights, place, ticks
