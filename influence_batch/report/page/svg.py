"""Plots of the page as inline SVG: an element function, and axes enough for small charts."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape


def element(name: str, *children: Any, **attributes: Any) -> Markup:
    """An element; `class_` is `class`, `stroke_width` is `stroke-width`; everything is escaped."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(_number(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    inner = "".join(str(escape(child)) for child in children)
    return Markup(f"<{name}{written}>{inner}</{name}>")


def _number(value: Any) -> Any:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else value


@dataclass(frozen=True)
class Frame:
    """The inside of a chart, in pixels of its view box."""

    width: float = 420.0
    height: float = 230.0
    left: float = 58.0
    right: float = 14.0
    top: float = 26.0
    bottom: float = 44.0

    @property
    def x0(self) -> float:
        return self.left

    @property
    def x1(self) -> float:
        return self.width - self.right

    @property
    def y0(self) -> float:
        return self.height - self.bottom

    @property
    def y1(self) -> float:
        return self.top

    def x(self, share: float) -> float:
        return self.x0 + share * (self.x1 - self.x0)

    def y(self, share: float) -> float:
        return self.y0 + share * (self.y1 - self.y0)


def chart(frame: Frame, title: str, *children: Any, natural: bool = False) -> Markup:
    """The whole chart; `title` says in words what it shows, for those who cannot see it.

    Args:
        natural: whether it has the size of its view box, not that of its place.
    """
    size = {"width": frame.width, "height": frame.height} if natural else {}
    return element(
        "svg",
        element("title", title),
        *children,
        viewBox=f"0 0 {frame.width:g} {frame.height:g}",
        role="img",
        class_="chart natural" if natural else "chart",
        **size,
    )


def axes(
    frame: Frame,
    x_ticks: Sequence[tuple[float, str]],
    y_ticks: Sequence[tuple[float, str]],
    x_label: str,
    y_label: str,
) -> list[Markup]:
    """Grid lines at the y ticks, words at both; places are shares of the axis."""
    parts = []
    for at, words in y_ticks:
        y = frame.y(at)
        parts.append(element("line", x1=frame.x0, x2=frame.x1, y1=y, y2=y, class_="grid"))
        parts.append(element("text", words, x=frame.x0 - 6, y=y + 3.5, text_anchor="end", class_="tick"))
    for at, words in x_ticks:
        parts.append(
            element("text", words, x=frame.x(at), y=frame.y0 + 19, text_anchor="middle", class_="tick")
        )
    parts.append(element("line", x1=frame.x0, x2=frame.x1, y1=frame.y0, y2=frame.y0, class_="axis"))
    middle = (frame.x0 + frame.x1) / 2
    parts.append(
        element("text", x_label, x=middle, y=frame.height - 6, text_anchor="middle", class_="axis-label")
    )
    if y_label:
        # Above the axis: beside it there is room for the figures only, whose letters grow on a phone.
        parts.append(element("text", y_label, x=4.0, y=12.0, class_="axis-label"))
    return parts


def line(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """A line through points, in pixels."""
    return element("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def band(low: Sequence[tuple[float, float]], high: Sequence[tuple[float, float]], class_: str) -> Markup:
    """The area between two lines."""
    points = [*low, *reversed(high)]
    return element("polygon", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def nice_ticks(top: float, most: int = 5) -> list[float]:
    """Round numbers from 0 to at least `top`."""
    if not top > 0 or not math.isfinite(top):
        return [0.0, 1.0]
    raw = top / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if power * factor >= raw * 0.9999)
    return [step * i for i in range(math.ceil(top / step - 1e-9) + 1)]


def log_place(low: float, high: float) -> Callable[[float], float]:
    """Shares of a logarithmic axis from `low` to `high`."""
    span = math.log(high / low) if high > low else 1.0
    return lambda value: math.log(max(value, low) / low) / span
