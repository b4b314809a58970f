"""What the README says is what happens: its commands, queries and tables."""

from __future__ import annotations

import re
from pathlib import Path

import duckdb
import pytest

import influence_batch
from influence_batch.config import load_config
from influence_batch.dataset.samples import write_sample
from influence_batch.report import TABLES

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
NIGHTS = 2


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the README's paths exist: the sample, and the reports of two nights."""
    folder = tmp_path_factory.mktemp("readme")
    write_sample("digits", folder / "configs" / "data" / "digits")
    paths = [f"{part}.path={folder}/configs/data/digits/{part}.parquet" for part in ("train", "test")]
    settings = [*paths, "model.features=standardize", "model.l2=1e-3"]
    for _ in range(NIGHTS):
        influence_batch.audit(
            ROOT / "configs" / "digits.yaml", overrides=settings, reports=folder / "reports"
        )
    return folder


@pytest.mark.parametrize("block", blocks("python"))
def test_python_runs(block: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    run = next((workplace / "reports" / "digits").glob("run_id=*"))
    names: dict[str, object] = {}
    exec(re.sub(r"run_id=\w+", run.name, block), names)
    if "nights" in names:
        nights, same = names["nights"], names["same"]
        assert nights.run_id.nunique() == same["run_id"].n_unique() == NIGHTS  # type: ignore[attr-defined,index]
        assert len(nights) == len(same) > NIGHTS * 50  # type: ignore[arg-type]
    if "todo" in names:
        assert len(names["todo"]) > 50  # type: ignore[arg-type]
        assert len(names["harmed"]) > 0  # type: ignore[arg-type]


@pytest.mark.parametrize("block", blocks("sql"))
def test_sql_runs(block: str, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace)
    found = duckdb.sql(block).df()
    runs = (workplace / "reports" / "digits").glob("run_id=*")
    assert set(found.run_id) == {path.name.removeprefix("run_id=") for path in runs}
    assert (found.groupby("run_id").suspects.sum() > 50).tolist() == [True] * NIGHTS


@pytest.mark.parametrize("block", blocks("yaml"))
def test_config_is_valid(block: str, tmp_path: Path) -> None:
    # A section of a config is shown without the rest of it.
    rest = "" if "train:" in block else "name: tickets\ntrain: {path: train.parquet, label: label}\n"
    (tmp_path / "audit.yaml").write_text(rest + block, encoding="utf-8")
    assert load_config(tmp_path / "audit.yaml").name == "tickets"


def test_every_column_of_the_reports_is_named() -> None:
    for columns in TABLES.values():
        for column in columns:
            assert f"`{column.name}`" in TEXT


def test_no_figure_is_left_to_fill_in() -> None:
    assert not re.search(r"\b(?:RETRAIN|FIRST|TODO|FIXME|XXX)\w*\b", TEXT)


def test_both_commands_stand_once_and_ci_runs_the_second() -> None:
    commands = [block.strip() for block in blocks("sh")]
    assert len(commands) == 2
    assert all("\n" not in command for command in commands)
    mark = "<!-- test command -->\n```sh\n"
    assert TEXT.count(mark) == 1
    assert commands[1] in TEXT.split(mark)[1]
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "<!-- test command -->" in ci


def test_configs_of_the_repository_are_valid() -> None:
    # Those of clusters have tests of their own: they need one to run.
    configs = sorted(p for p in (ROOT / "configs").glob("*.yaml") if not p.stem.startswith("cluster_"))
    stems = ["breast_cancer", "digits", "mnist_1_vs_7", "nightly", "noisy_line"]
    assert [path.stem for path in configs] == stems
    for path in configs:
        assert load_config(path).name == path.stem
        data = {"nightly": "digits"}.get(path.stem, path.stem)
        assert f"influence-batch sample {data} configs/data/{data}" in path.read_text()
