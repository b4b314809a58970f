"""Cells of CSV files of verdicts: guarded against spreadsheets, and read back."""

from __future__ import annotations

import re

# Spreadsheets run what begins so, after space and apostrophes too; numbers are none of it. The page's script
# has the two patterns from here: what they say must be the same to Python and to JavaScript.
_SKIPPED = r"[' \t\n\v\f\r\u00a0\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff]*"
FORMULA = rf"{_SKIPPED}[=+\-@\t\r]"
NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"

_FORMULA, _NUMBER, _GUARDED = re.compile(FORMULA), re.compile(NUMBER), re.compile(f"'{FORMULA}")


def guarded_cell(text: str) -> str:
    """A cell that no spreadsheet runs as a formula: `=1+1` is `'=1+1`."""
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def plain_cell(text: str) -> str:
    """A cell as it was before it was guarded: `'=1+1` is `=1+1` again."""
    return text[1:] if _GUARDED.match(text) else text
