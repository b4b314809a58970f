"""Bad input, end to end: one message that says what to change, exit code 2, and nothing written."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from influence_batch import InputError, audit
from tests.flows.bad_input_cases import FROM_FOOTERS, FROM_VALUES, Case, frame
from tests.flows.processes import run


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


def under(cases: Mapping[str, Case], *names: str) -> Any:
    chosen = {name: cases[name] for name in names} if names else cases
    return pytest.mark.parametrize("case", chosen.values(), ids=chosen.keys())


@under(FROM_FOOTERS | FROM_VALUES)
def test_the_message_says_what_to_change_and_nothing_is_written(case: Case, tmp_path: Path) -> None:
    config = case.write(tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InputError) as caught:
        audit(config)
    case.check(str(caught.value), tmp_path)
    assert tree(tmp_path) == before


def no_prefect_in(folder: Path) -> dict[str, str]:
    """An environment in which Prefect, were it started, would leave files in a folder that is looked at."""
    return {**os.environ, "PREFECT_HOME": str(folder / "prefect")}


def run_audit(
    config: Path, reports: Path, environment: dict[str, str], *more: str
) -> subprocess.CompletedProcess[str]:
    return run("audit", str(config), "--reports", str(reports), *more, env=environment)


def check_refused(result: subprocess.CompletedProcess[str], case: Case, folder: Path) -> None:
    assert result.returncode == 2
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert all(line.startswith("error: ") for line in lines), result.stderr
    case.check("\n".join(line.removeprefix("error: ") for line in lines), folder)


class TestCommandLine:
    @under(
        FROM_FOOTERS,
        "no file",
        "cut off",
        "no feature column",
        "two columns of one name",
        "numbers as labels of train, text in test",
        "values of a wrong type and range",
    )
    def test_before_prefect_starts(self, case: Case, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        result = run_audit(case.write(tmp_path / "data"), tmp_path / "reports", no_prefect_in(tmp_path))
        check_refused(result, case, tmp_path / "data")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]

    @under(FROM_VALUES, "NaN and infinity", "weights of another shape")
    def test_inside_the_flow(self, case: Case, tmp_path: Path, environment: dict[str, str]) -> None:
        """Earlier reports stay as they are."""
        (tmp_path / "data").mkdir()
        earlier = tmp_path / "reports" / "nightly" / "run_id=20240229T000000Z"
        earlier.mkdir(parents=True)
        (earlier / "run.json").write_text("{}")
        before = tree(tmp_path / "reports")
        result = run_audit(case.write(tmp_path / "data"), tmp_path / "reports", environment)
        check_refused(result, case, tmp_path / "data")
        assert tree(tmp_path / "reports") == before

    def test_an_override(self, tmp_path: Path) -> None:
        case = Case(
            "DIR/nightly.yaml: model.l2: found -1; accepted: a number, 0 or more, or auto (by "
            "leave-one-out loss)"
        )
        config = case.write(tmp_path)
        result = run_audit(config, tmp_path / "reports", no_prefect_in(tmp_path), "--set", "model.l2=-1")
        check_refused(result, case, tmp_path)

    @pytest.mark.parametrize(
        ("reports", "message"),
        [
            (
                "file",
                "reports: DIR/file/nightly cannot be written (...); expected a folder in which folders "
                "can be made",
            ),
            (
                "file/in/it",
                "reports: DIR/file/in/it/nightly cannot be written (Not a directory); expected a folder "
                "in which folders can be made",
            ),
            (
                "/proc/reports",
                "reports: /proc/reports/nightly cannot be written (...); expected a folder in which "
                "folders can be made",
            ),
            (
                "s3://bucket/reports",
                "reports: found s3:/bucket/reports; accepted: a URL with two slashes (pathlib keeps one: "
                "give it as text)",
            ),
        ],
    )
    def test_reports_that_cannot_be_written(self, tmp_path: Path, reports: str, message: str) -> None:
        case = Case(message)
        config = case.write(tmp_path)
        (tmp_path / "file").write_text("mine")
        before = tree(tmp_path)
        place = Path(reports) if ":" in reports else tmp_path / reports
        check_refused(run_audit(config, place, no_prefect_in(tmp_path)), case, tmp_path)
        assert tree(tmp_path) == before

    def test_no_config(self, tmp_path: Path) -> None:
        case = Case("DIR/nightly.yaml: no such file; expected the path of a YAML config")
        result = run_audit(tmp_path / "nightly.yaml", tmp_path / "reports", no_prefect_in(tmp_path))
        check_refused(result, case, tmp_path)
        assert list(tmp_path.iterdir()) == []


def test_a_test_set_may_lack_the_id_column(tmp_path: Path) -> None:
    """Where the config does not ask for it, row numbers serve."""
    config = Case("", test=frame(10, seed=1).drop(columns="id")).write(tmp_path)
    assert audit(config).test_points["id"].tolist() == list(range(10))
