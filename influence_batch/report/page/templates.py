"""The page's templates, and what they are filled in with."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from influence_batch.report.page.plots import clipped, short
from influence_batch.report.page.words import percent


@cache
def environment() -> Environment:
    """Of the templates of the page."""
    environment = Environment(
        loader=PackageLoader("influence_batch.report.page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"percent": percent, "short": short, "clipped": clipped}
    return environment
