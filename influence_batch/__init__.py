"""Find mislabeled training data with influence functions."""

from influence_batch.audit import audit
from influence_batch.errors import GateError, InputError, RunError
from influence_batch.redaction import redact_log
from influence_batch.report import Comparison, Report, compare, load_history, load_report

redact_log()

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "GateError",
    "InputError",
    "Report",
    "RunError",
    "audit",
    "compare",
    "load_history",
    "load_report",
]
