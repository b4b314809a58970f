"""Data and reports on a real S3 server: the same as on disk, and a run whole there or not at all."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import influence_batch
from influence_batch.config import load_config
from influence_batch.errors import InputError
from influence_batch.labels import export_labels
from influence_batch.report.placing import destination
from influence_batch.review import import_verdicts, review_state
from influence_batch.storage import as_place, read_text
from tests.planted import FEATURES, make, spoil
from tests.s3_server import Gate, gate, s3_server

pytest.importorskip("moto", reason="no moto, which is the S3 server of this test")
pytest.importorskip("s3fs", reason="no s3fs, which is the client")

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}
REPORTS, AUDIT = "s3://bucket/nightly/reports", "s3://bucket/nightly/reports/week"


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def door(server: str) -> Iterator[Gate]:
    with gate(server) as opened:
        yield opened


@pytest.fixture
def s3(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An empty bucket `bucket`, as s3fs has it; the environment has what it takes to get at it."""
    import s3fs

    for name, value in (ENVIRONMENT | {"AWS_ENDPOINT_URL": server, "TMPDIR": str(tmp_path)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("tempfile.tempdir", None)
    # Clients that an earlier test has made know its environment.
    s3fs.S3FileSystem.clear_instance_cache()
    files = s3fs.S3FileSystem(endpoint_url=server, use_listings_cache=False, skip_instance_cache=True)
    files.mkdir("bucket")
    yield files
    files.rm("bucket", recursive=True)
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def shut(door: Gate, s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """The gate, through which the audit's requests go."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", door.url)
    door.pass_()
    yield door
    door.pass_()


def put(s3: Any, frame: pd.DataFrame, parts: int = 1) -> None:
    if s3.exists("bucket/data"):
        s3.rm("bucket/data", recursive=True)
    size = -(-len(frame) // parts)
    for part in range(parts):
        rows = frame.drop(columns="true").iloc[part * size : (part + 1) * size]
        with s3.open(f"bucket/data/part-{part}.parquet", "wb") as stream:
            rows.to_parquet(stream)


def planted(wrong: list[int]) -> pd.DataFrame:
    frame = make(200)
    spoil(frame, wrong)
    return frame


def config(**more: Any) -> dict[str, Any]:
    return {
        "name": "week",
        "train": {"path": "s3://bucket/data", "id": "id", "label": "label", "features": FEATURES},
        "model": {"l2": 1e-3},
        "influence": {"test_sample": 10, "top_k": 2},
        "reports": REPORTS,
        **more,
    }


def listed(s3: Any) -> list[str]:
    return sorted(name.removeprefix("bucket/nightly/reports/") for name in s3.find("bucket/nightly"))


def runs(s3: Any) -> list[str]:
    return sorted({name.split("/")[1] for name in listed(s3) if "/run_id=" in name})


def test_nights_reviews_and_what_reads_them(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(s3, planted([1, 2, 3, 4]))
    one = influence_batch.audit(config(keep=2))
    assert sorted(one.suspects.id) == [1, 2, 3, 4]
    on_disk = influence_batch.audit(config(reports=str(tmp_path / "disk")))
    pd.testing.assert_frame_equal(one.examples, on_disk.examples)
    pd.testing.assert_frame_equal(one.cross_influence, on_disk.cross_influence)
    names = {path.relative_to(on_disk.run_dir).as_posix() for path in on_disk.run_dir.rglob("*.*")}
    run = runs(s3)[0]
    assert listed(s3) == sorted(f"week/{run}/{name}" for name in names)
    assert "text/html" in s3.info(f"bucket/nightly/reports/week/{run}/report.html")["ContentType"]
    # A colleague reviews, with a file that is in the bucket too.
    with s3.open("bucket/verdicts.csv", "w") as stream:
        stream.write("id,verdict,reviewer\n1,correct,ann\n2,ambiguous,ann\n")
    done = import_verdicts(as_place(AUDIT, "reports"), "s3://bucket/verdicts.csv")
    assert (done.added, str(done.path).startswith(f"{AUDIT}/verdicts/")) == (2, True)
    put(s3, planted([1, 2, 3, 5]))
    two = influence_batch.audit(config(keep=2))
    assert dict(zip(two.suspects.id, two.suspects.state, strict=True)) == {
        2: "persisting", 3: "persisting", 5: "new"
    }  # fmt: skip
    assert dict(zip(two.resolved.id, two.resolved.resolution, strict=True)) == {
        1: "reviewed", 4: "label_changed"
    }  # fmt: skip
    assert two.run["model"]["begun_at_run"] == one.run["run_id"]
    assert review_state(as_place(AUDIT, "reports"))["listed_reviewed"] == 1
    reports = [one, two, *(influence_batch.audit(config(keep=2)) for _ in range(2))]
    # Of four nights the newest two are kept, and the first, which was reviewed; the trend has all.
    ids = [report.run_dir.name for report in reports]
    assert runs(s3) == [ids[0], *ids[2:]]
    assert not [name for name in listed(s3) if ".unfinished" in name]
    trend = influence_batch.load_history(AUDIT)
    assert [f"run_id={run_id}" for run_id in trend.run_id] == ids
    assert trend.n_suspects.tolist() == [4, 3, 3, 3]
    assert trend.attrs == {"notes": [], "removed": [ids[1].removeprefix("run_id=")]}
    last = influence_batch.load_report(f"{AUDIT}/{ids[3]}")
    assert set(last.suspects.nights_seen) == {3, 4}
    assert last.columns("examples", ["id", "rank"]).shape == (200, 2)
    compared = influence_batch.compare(f"{AUDIT}/{ids[2]}", f"{AUDIT}/{ids[3]}")
    assert compared.summary["suspects"]["both"] == 3
    with pytest.raises(InputError, match=rf"no run\.json; the latest run in it is {ids[3]}"):
        influence_batch.load_report(AUDIT)
    assert export_labels(load_config(config()), "s3://bucket/labels.csv")["rows"] == 200
    assert s3.exists("bucket/labels.csv")
    # Verdicts are whole files of their own, and nothing of the user's was touched.
    assert sorted(s3.ls("bucket/data")) == ["bucket/data/part-0.parquet"]
    # All nights at once, as the README says.
    import duckdb
    import fsspec
    import polars

    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    [block] = re.findall(r"^```text\n(files = fsspec.*?)^```", readme, re.M | re.S)
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")  # polars wants to be told that plain HTTP will do
    names: dict[str, Any] = {"fsspec": fsspec, "pd": pd, "pl": polars, "duckdb": duckdb}
    try:
        exec(block.replace("bucket/reports/tickets", "bucket/nightly/reports/week"), names)
        for frame in (names["nights"], names["same"].to_pandas(), names["again"].df()):
            assert (frame.run_id.nunique(), len(frame)) == (3, 10)
    finally:
        duckdb.unregister_filesystem("s3")


@pytest.mark.parametrize("key", ["suspects.parquet", "run.json"])
def test_an_upload_that_fails_leaves_no_run(s3: Any, shut: Gate, key: str) -> None:
    put(s3, planted([1, 2]))
    shut.refused = f"run_id.*{key}"
    with pytest.raises(OSError, match=rf"Access Denied: '{AUDIT}/run_id=.*/{key}'"):
        influence_batch.audit(config())
    assert shut.reached.is_set()
    assert listed(s3) == []
    shut.pass_()
    report = influence_batch.audit(config())
    # What was computed was not lost.
    assert report.run["execution"]["taken_over"]
    assert len(runs(s3)) == 1


def test_a_run_killed_in_mid_upload_is_no_run_and_the_next_cleans_up(
    s3: Any, shut: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(s3, planted([1, 2]))
    shut.held = "run_id.*/suspects.parquet"
    code = f"import influence_batch; influence_batch.audit({config()!r})"
    process = subprocess.Popen([sys.executable, "-c", code])
    try:
        assert shut.reached.wait(60)
    finally:
        process.kill()
        process.wait()
    shut.pass_()
    [half] = runs(s3)
    assert f"week/{half}/examples.parquet" in listed(s3)
    assert f"week/.unfinished-{half}.json" in listed(s3)
    assert influence_batch.load_history(AUDIT).empty
    with pytest.raises(InputError, match=r"it has no run\.json"):
        influence_batch.load_report(f"{AUDIT}/{half}")
    # A run on another machine leaves it alone: it may be at work on it.
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "another"))
    (tmp_path / "another").mkdir()
    destination(as_place(REPORTS, "reports"), "week").open()
    monkeypatch.setattr("tempfile.tempdir", None)
    assert runs(s3) == [half]
    report = influence_batch.audit(config())
    assert runs(s3) == [report.run_dir.name]  # in the same second it may have the same name
    assert len(report.suspects) == report.run["detection"]["n_suspects"]
    assert not [name for name in listed(s3) if ".unfinished" in name]
    assert report.run["notes"] == [note for note in report.run["notes"] if "history" not in note]


def test_a_removal_that_is_cut_short_is_finished_by_the_next_run(s3: Any) -> None:
    put(s3, planted([1, 2]))
    one = influence_batch.audit(config())
    run = one.run_dir.name
    mark = {"state": "removing", "owner": "another machine", "time": "2020-01-01T00:00:00+00:00"}
    s3.pipe_file(f"bucket/nightly/reports/week/.unfinished-{run}.json", json.dumps(mark).encode())
    s3.rm_file(f"bucket/nightly/reports/week/{run}/run.json")
    assert influence_batch.load_history(AUDIT).empty
    two = influence_batch.audit(config())
    assert runs(s3) == [two.run_dir.name]
    assert two.run["history"]["previous_run"] is None


def test_a_name_is_taken_once(s3: Any) -> None:
    first, second = (destination(as_place(REPORTS, "reports"), "week") for _ in range(2))
    first.open()
    assert first.claim("20261125T020000Z")
    assert not second.claim("20261125T020000Z")
    first.give_up("20261125T020000Z")
    assert listed(s3) == []
    assert second.claim("20261125T020000Z")


def test_images_beside_an_embedding_are_read_from_the_bucket(s3: Any) -> None:
    """Paths relative to the folder of the data, and whole URLs; what is not there is said in its place."""
    frame = planted([1, 2, 3, 4])
    colors = {"ant": (200, 30, 30), "bee": (30, 200, 30), "cat": (30, 30, 200)}
    for label, color in colors.items():
        with s3.open(f"bucket/data/images/{label}.png", "wb") as stream:
            Image.new("RGB", (60, 30), color).save(stream, "PNG")
    names = np.where(frame.id % 2 == 0, "s3://bucket/data/images/", "images/") + frame.true + ".png"
    names[frame.id == 4] = "images/none.png"
    frame = frame.assign(embedding=list(frame[FEATURES].to_numpy()), picture=names)
    with s3.open("bucket/data/train.parquet", "wb") as stream:
        frame[["id", "label", "embedding", "picture"]].to_parquet(stream)
    report = influence_batch.audit(
        config(
            train={"path": "s3://bucket/data/*.parquet", "id": "id", "label": "label"},
            report={"show": {"kind": "image", "columns": "picture"}},
        )
    )
    assert report.run["train"]["features"] == len(FEATURES)
    page = read_text(report.run_dir / "report.html")
    found = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])
    assert sorted(found["rows"]["id"]) == ["1", "2", "3", "4"]
    for id_, place in zip(found["rows"]["id"], found["rows"]["own"], strict=True):
        item = found["train"][place]
        if id_ == "4":
            assert item["k"] == "e"
            continue
        content = base64.b64decode(item["s"].split(",")[1])
        color = np.asarray(Image.open(io.BytesIO(content)))[15, 30]
        np.testing.assert_allclose(color, colors[frame.true[int(id_)]], atol=6)


def test_workers_read_their_shards_from_s3(s3: Any) -> None:
    put(s3, planted([1, 2, 3]), parts=4)
    cluster = {"kind": "local", "workers": 2}
    report = influence_batch.audit(config(cluster=cluster, shard_rows=50))
    assert sorted(report.suspects.id) == [1, 2, 3]
    assert report.run["execution"]["cluster"] == "local"


@pytest.mark.parametrize(
    ("reports", "unset", "message"),
    [
        (
            "s3://nowhere/reports", "",
            "s3://nowhere/reports/week cannot be written (The specified bucket does not exist); expected a "
            "folder in which files can be written and listed",
        ),
        (
            REPORTS, "AWS_ACCESS_KEY_ID",
            f"{AUDIT} cannot be reached (Unable to locate credentials); expected a bucket or server that is "
            "there, and credentials for it in the environment",
        ),
        (
            "oss://bucket/reports", "",
            "oss://bucket/reports cannot be opened (Install ossfs to access Alibaba Object Storage System); "
            "expected a local path or an fsspec URL",
        ),
        (
            "xyz://bucket/reports", "",
            "xyz://bucket/reports cannot be opened (Unsupported filesystem: 'xyz'); expected a local path or "
            "an fsspec URL",
        ),
        (
            "simplecache::s3://bucket/reports", "",
            "found the chained URL simplecache::s3://bucket/reports; accepted: a plain one, such as "
            "s3://bucket/x",
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_url_is_told_before_any_work(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reports: str, unset: str, message: str
) -> None:
    planted([1]).drop(columns="true").to_parquet(tmp_path / "train.parquet")
    if unset:
        monkeypatch.delenv(unset)
    seen: list[str] = []
    train = {"path": str(tmp_path / "train.parquet"), "id": "id", "label": "label", "features": FEATURES}
    with pytest.raises(InputError, match=f"^reports: {re.escape(message)}$"):
        influence_batch.audit(
            config(train=train, reports=reports), progress=lambda stage, done, total: seen.append(stage)
        )
    assert seen == []
    assert s3.find("bucket") == []


def test_the_command_says_it_too(s3: Any, tmp_path: Path) -> None:
    (tmp_path / "week.yaml").write_text("train: {path: 's3://nowhere/data', label: label}")
    command = [sys.executable, "-m", "flows.cli", "audit", "week.yaml", "--reports", REPORTS]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "error: train.path: s3://nowhere/data does not exist; expected a Parquet file, folder, glob or "
        "fsspec URL\n"
    )
