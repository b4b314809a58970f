"""The page of a run: one HTML file that needs nothing beside it."""

from influence_batch.report.page.cells import guarded_cell, plain_cell
from influence_batch.report.page.content import Examples, PageContent, Point, page_rows
from influence_batch.report.page.plots import Distribution, Reviewed
from influence_batch.report.page.render import PAGE, render_page
from influence_batch.report.page.tables import parts_of

__all__ = [
    "PAGE",
    "Distribution",
    "Examples",
    "PageContent",
    "Point",
    "Reviewed",
    "guarded_cell",
    "page_rows",
    "parts_of",
    "plain_cell",
    "render_page",
]
