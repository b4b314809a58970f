"""Table schemas, writing and reading runs."""

from influence_batch.report.comparing import Comparison, compare
from influence_batch.report.history import load_history
from influence_batch.report.reader import Report, load_report
from influence_batch.report.schema import TABLES, describe_tables
from influence_batch.report.writer import RunWriter

__all__ = [
    "TABLES",
    "Comparison",
    "Report",
    "RunWriter",
    "compare",
    "describe_tables",
    "load_history",
    "load_report",
]
