"""The gates of a run as a JUnit file, which CI systems show: a test case a gate."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from influence_batch.errors import InputError
from influence_batch.execution.parts import whole_or_nothing

# What XML 1.0 has no way to write; labels can have it.
_NO_TEXT = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def check_junit(path: Path) -> None:
    """Refuse a path that a JUnit file cannot be written to.

    Raises:
        InputError: its folder is missing, or it is a folder itself.
    """
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"--junit: the folder {folder} does not exist; expected one that does")
    if path.is_dir():
        raise InputError(f"--junit: {path} is a folder; expected the name of a file")


def write_junit(path: Path, audit: str, gates: Sequence[Mapping[str, Any]], error: str | None = None) -> None:
    """Write the file, in the place of an earlier one: a failure for each gate that did not pass.

    Args:
        audit: name of the audit, and of the test suite.
        gates: as run.json has them.
        error: why there is no run to hold against the gates: the one test case `run` then has it.
    """
    failed = [gate for gate in gates if not gate["passed"]]
    counts = {
        "tests": str(len(gates) if error is None else 1),
        "failures": str(len(failed)),
        "errors": str(int(error is not None)),
    }
    root = ElementTree.Element("testsuites", {"name": "influence-batch", **counts})
    stamp = datetime.now(UTC).isoformat(timespec="seconds")
    suite = ElementTree.SubElement(
        root, "testsuite", {"name": _text(audit), **counts, "skipped": "0", "time": "0", "timestamp": stamp}
    )
    for gate in gates:
        reason = _text(gate["reason"])
        case = _case(suite, audit, str(gate["gate"]))
        if not gate["passed"]:
            ElementTree.SubElement(case, "failure", {"type": "gate", "message": reason}).text = reason
        else:
            ElementTree.SubElement(case, "system-out").text = reason
    if error is not None:
        case = _case(suite, audit, "run")
        said = {"type": "run", "message": _text(error.splitlines()[0] if error else "")}
        ElementTree.SubElement(case, "error", said).text = _text(error)
    ElementTree.indent(root)
    tree = ElementTree.ElementTree(root)
    whole_or_nothing(path, lambda temporary: tree.write(temporary, encoding="utf-8", xml_declaration=True))


def _case(suite: ElementTree.Element, audit: str, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", {"classname": f"gates.{_text(audit)}", "name": name, "time": "0"}
    )


def _text(value: Any) -> str:
    return _NO_TEXT.sub("\ufffd", str(value))
