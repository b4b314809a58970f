"""Cells of the CSV file that the page gives, read back."""

from __future__ import annotations

import re

# Spreadsheets run what begins so; the page puts an apostrophe before it (`cell` in page.js).
_GUARDED = re.compile(r"'['\s]*[=+\-@\t\r]")


def plain_cell(text: str) -> str:
    """A cell as it was before the page guarded it against spreadsheets: `'=1+1` is `=1+1` again."""
    return text[1:] if _GUARDED.match(text) else text
