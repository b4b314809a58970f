"""The commands that look back, as a user runs them, on a real run."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
import yaml
from click.testing import CliRunner, Result

import influence_batch
from flows.cli import main
from tests.flows.processes import run
from tests.planted import config, make, save, spoil


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config file whose audit has had one run: rows 1 to 8 are wrong."""
    folder = tmp_path_factory.mktemp("audited")
    frame = make(300)
    spoil(frame, list(range(1, 9)))
    save(frame, folder)
    path = folder / "week.yaml"
    path.write_text(yaml.safe_dump(config(folder, reports=str(folder / "reports"))), encoding="utf-8")
    influence_batch.audit(path)
    return path


def here(*arguments: str) -> Result:
    """The same command in this process, where nothing of a process is in question."""
    return CliRunner().invoke(main, list(arguments))


def test_review_takes_in_gives_back_and_counts(audited: Path, tmp_path: Path) -> None:
    truth = make(300).true
    said = tmp_path / "said.csv"
    said.write_text(f"id,verdict,corrected_label\n1,mislabeled,{truth[1]}\n2,correct,\n3,mislabeled,\n")
    before = audited.with_name("train.parquet").read_bytes()
    result = run("review", str(audited), "--import", str(said), "--export", str(tmp_path / "all.parquet"))
    assert (result.returncode, result.stderr) == (0, "")
    [stored] = (audited.parent / "reports" / "week" / "verdicts").iterdir()
    [run_dir] = (audited.parent / "reports" / "week").glob("run_id=*")
    assert result.stdout == (
        f"3 verdicts stored in {stored}\n"
        f"3 verdicts written to {tmp_path / 'all.parquet'}\n"
        f"3 verdicts on 3 rows of run {run_dir.name[7:]}: 2 mislabeled (1 of them with a corrected label), "
        "1 correct, 0 ambiguous; and on 0 rows that changed since\n"
        "of its list of 8 rows 3 are reviewed\n"
    )
    assert pd.read_parquet(tmp_path / "all.parquet").id.tolist() == [1, 2, 3]
    out = tmp_path / "labels.csv"
    exported = run("export-labels", str(audited), str(out))
    assert exported.stdout == (
        f"{out}: 300 labels, 1 of them corrected\n"
        "note: 1 more were found mislabeled without a corrected label, and are as they were\n"
    )
    labels = pd.read_csv(out).set_index("id").label
    assert labels.index[labels != truth].tolist() == [2, 3, 4, 5, 6, 7, 8]
    again = here("export-labels", str(audited), str(out))
    assert again.exit_code == 2
    assert again.stderr == f"error: export-labels: {out} is there already; expected the name of a new file\n"
    assert audited.with_name("train.parquet").read_bytes() == before


def test_a_wrong_file_is_told_and_leaves_nothing(audited: Path, tmp_path: Path) -> None:
    said = tmp_path / "said.csv"
    said.write_text("id,verdict\n1,right\n4000,correct\n")
    folder = audited.parent / "reports" / "week" / "verdicts"
    before = list(folder.glob("*"))
    result = run("review", str(audited), "--import", str(said))
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[0].startswith(
        f"error: review: {said}: column verdict: found 'right' in row 0"
    )
    assert "Traceback" not in result.stderr
    assert list(folder.glob("*")) == before


def test_history_prints_the_trend(audited: Path, tmp_path: Path) -> None:
    (audited.parent / "reports" / "week" / "run_id=old").mkdir()
    table = here("history", str(audited))
    assert table.exit_code == 0
    assert "1 run in " in table.stdout
    assert "note: The folder run_id=old is no run: left out." in table.stdout
    content = json.loads(run("history", str(audited), "--json").stdout)
    [line] = content["runs"]
    assert (line["n_train"], line["n_suspects"], line["new"], line["resolved"]) == (300, 8, 8, 0)
    assert line["run_id"] in table.stdout
    none = here("history", str(audited), "--reports", str(tmp_path))
    assert none.exit_code == 2
    assert "the audit has no run yet" in none.stderr


def test_a_junit_file_says_that_there_was_no_run(audited: Path, tmp_path: Path) -> None:
    junit = tmp_path / "gates.xml"
    junit.write_text("of last night")
    result = here("audit", str(audited), "--set", "train.label=lable", "--junit", str(junit))
    assert result.exit_code == 2
    [suite] = ElementTree.parse(junit).getroot()
    assert suite.get("errors") == "1"
    assert "did you mean label?" in suite.find("testcase/error").text
    nowhere = here("audit", str(audited), "--junit", str(tmp_path / "none" / "gates.xml"))
    assert nowhere.exit_code == 2
    assert nowhere.stderr.startswith("error: --junit: the folder ")
