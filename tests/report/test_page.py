"""The page as a file: what its data block has of the user's files, its size, its words."""

from __future__ import annotations

import base64
import copy
import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image

import influence_batch
from influence_batch import page as gathering
from influence_batch.detection.channels import Basis
from influence_batch.report.page import Distribution, PageContent, Reviewed, parts_of, render_page
from influence_batch.report.page.content import as_json
from influence_batch.report.page.views import view_data
from influence_batch.report.page.words import explanation, figures, percent
from influence_batch.review import import_verdicts

N, M, SIDE = 200, 30, 3
FEATURES = [f"p{i}" for i in range(SIDE**2)]


def frame(n: int, seed: int = 0) -> pd.DataFrame:
    """Two classes told apart by nine pixels from 0 to 16; the first tenth is labelled wrong."""
    random = np.random.default_rng(seed)
    true = random.integers(0, 2, n)
    pixels = np.clip(
        random.integers(0, 6, (n, SIDE**2)) + 10 * (np.arange(SIDE**2) % 2 == true[:, None]), 0, 16
    )
    frame = pd.DataFrame(pixels, columns=FEATURES)
    frame["label"] = np.where(np.arange(n) < n // 10, 1 - true, true)
    frame["id"] = np.arange(n) + 10**17
    return frame


def audit(
    folder: Path, show: Any = "row", train: pd.DataFrame | None = None, **more: Any
) -> influence_batch.Report:
    (frame(N) if train is None else train).to_parquet(folder / "train.parquet")
    frame(M, 1).assign(id=np.arange(M)).to_parquet(folder / "test.parquet")
    config = {
        "name": "small",
        "train": {"path": str(folder / "train.parquet"), "id": "id", "label": "label", "features": FEATURES},
        "test": {"path": str(folder / "test.parquet")},
        "model": {"l2": 1e-2},
        "detection": {"budget": 20},
        "report": {"show": show},
        **more,
    }
    return influence_batch.audit(config, reports=folder / "reports")


def html(report: influence_batch.Report) -> str:
    return (report.run_dir / "report.html").read_text(encoding="utf-8")


def data(report: influence_batch.Report) -> Any:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', html(report), re.S)
    assert found is not None
    return json.loads(found[1])


def image(item: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(item["s"].split(",")[1]))))


def test_images_are_the_pixels_of_the_files(tmp_path: Path) -> None:
    report = audit(tmp_path, {"kind": "image", "shape": [SIDE, SIDE], "range": [0, 16]})
    found = data(report)
    raw = frame(N).set_index("id").filter(like="p")
    assert found["rows"]["id"] == [str(id_) for id_ in report.suspects.id]
    for id_, place in zip(report.suspects.id, found["rows"]["own"], strict=True):
        np.testing.assert_allclose(image(found["train"][place]).ravel(), raw.loc[id_] / 16 * 255, atol=0.51)
    # Neighbours and harmed test points, each of its own set.
    id_, _, place = found["rows"]["near_suggested"][0][0]
    np.testing.assert_allclose(image(found["train"][place]).ravel(), raw.loc[int(id_)] / 16 * 255, atol=0.51)
    tests = frame(M, 1).filter(like="p")
    id_, _, place, *_ = found["rows"]["harmed"][0][0]
    np.testing.assert_allclose(image(found["test"][place]).ravel(), tests.loc[int(id_)] / 16 * 255, atol=0.51)


def test_images_come_from_paths_and_from_bytes(tmp_path: Path) -> None:
    """Relative to the data's folder; what is no image, or not there, is said in its place."""
    (tmp_path / "images").mkdir()
    stream = io.BytesIO()
    Image.new("RGB", (300, 150), (200, 30, 30)).save(stream, "PNG")
    (tmp_path / "images" / "red.png").write_bytes(stream.getvalue())
    (tmp_path / "images" / "bad.png").write_text("<svg onload=alert(1)>")
    names = np.array(
        ["images/red.png", "images/bad.png", "images/none.png", "javascript:alert(1)", None], dtype=object
    )
    train = frame(N).assign(
        path=names[np.arange(N) % 5], content=[stream.getvalue(), b"\xff\xd8\xff"] * (N // 2)
    )
    items = {}
    for column in ("path", "content"):
        # Rows of train serve as test points, for the test set has no images.
        report = audit(tmp_path, {"kind": "image", "columns": column}, train, test=None)
        found = data(report)
        items[column] = {
            id_: found["train"][p] for id_, p in zip(found["rows"]["id"], found["rows"]["own"], strict=True)
        }
    for id_, item in items["path"].items():
        name = names[(int(id_) - 10**17) % 5]
        if name == "images/red.png":
            assert (item["w"], item["h"]) == (96, 48)
            assert item["s"].startswith("data:image/jpeg;base64,")
            np.testing.assert_allclose(image(item)[20, 20], (200, 30, 30), atol=6)
        else:
            assert item["k"] == "e"
    assert {item["k"] for item in items["content"].values()} == {"i", "e"}


def test_sounds_are_named_and_small_ones_played(tmp_path: Path) -> None:
    (tmp_path / "short.wav").write_bytes(b"RIFF" + bytes(200))
    (tmp_path / "long.wav").write_bytes(bytes(70_000))
    names = np.array(["short.wav", "long.wav", "speech.xyz", "none.mp3"], dtype=object)
    train = frame(N).assign(path=names[np.arange(N) % 4])
    found = data(audit(tmp_path, {"kind": "audio", "columns": "path"}, train, test=None))
    for id_, place in zip(found["rows"]["id"], found["rows"]["own"], strict=True):
        item, name = found["train"][place], names[(int(id_) - 10**17) % 4]
        assert (item["k"], item["p"]) == ("a", name)
        assert ("s" in item) == (name == "short.wav")
        assert ("e" in item) == (name in ("long.wav", "none.mp3"))


def test_rows_show_the_most_unusual_features(tmp_path: Path) -> None:
    train = frame(N).assign(note=[f"n{i}" for i in range(N)])
    train.loc[3, "p4"] = 400
    report = audit(
        tmp_path, "row", train, model={"features": "standardize", "l2": 1e-2}, detection={"budget": N}
    )
    found = data(report)
    # The test set has no column `note`.
    assert found["names"] == [f"p{i}" for i in range(9)]
    cells = found["train"][found["rows"]["own"][found["rows"]["id"].index(str(10**17 + 3))]]["r"]
    name, value, deviations = cells[0]
    assert (found["names"][name], value) == ("p4", "400")
    assert deviations == pytest.approx((400 - train.p4.mean()) / train.p4.std(ddof=0), abs=0.06)
    assert len(cells) == 6


def test_the_page_can_be_left_out_and_its_settings_do_not_hinder_taking_up_a_run(tmp_path: Path) -> None:
    report = audit(tmp_path, report={"page": False, "show": {"kind": "image", "columns": "nothing"}})
    assert not (report.run_dir / "report.html").exists()
    assert "page" not in report.run["seconds"]


def test_the_page_stays_small_whatever_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise does not compress: rows and examples are left out from the end, and the page says so."""
    random = np.random.default_rng(0)
    train = frame(N).assign(text=["".join(map(chr, random.integers(97, 123, 500))) for _ in range(N)])
    monkeypatch.setattr(gathering, "_ROW_BYTES", 20_000)
    monkeypatch.setattr(gathering, "_WHOLE", 15)
    monkeypatch.setattr(gathering, "_ALL_BYTES", 60_000)
    report = audit(tmp_path, {"kind": "text", "columns": "text"}, train, test=None, detection={"budget": N})
    found, text = data(report), html(report)
    assert 20 < len(found["rows"]["id"]) < N
    neighbours = [line is not None for line in found["rows"]["near_given"]]
    assert neighbours == [True] * 15 + [False] * (len(neighbours) - 15)
    assert f"for the first 15 rows; suspects.parquet has them for the first {N}." in text
    assert 10 < len(found["train"]) + len(found["test"]) < 100
    assert found["rows"]["own"][0] == 0
    assert len(text.encode()) < 60_000 + 80_000
    assert f"the first {len(found['rows']['id'])} of {N} rows" in text
    assert re.search(r"it shows \d+ of the \d+ examples", text)


def test_the_page_says_how_many_rows_have_evidence(tmp_path: Path) -> None:
    """The others have an example of their own all the same."""
    report = audit(tmp_path, detection={"budget": 20, "evidence": 5})
    found, text = data(report), html(report)
    assert [line is not None for line in found["rows"]["near_given"]] == [True] * 5 + [False] * 15
    assert "gathered for the first 5 rows: detection.evidence sets how many" in text
    assert min(found["rows"]["own"]) >= 0


def test_a_regression_has_a_page(tmp_path: Path) -> None:
    train = frame(N)
    train["label"] = train.p0 * 2.0 + 0.25
    train.loc[0, "label"], train["source"] = 900.0, "s"
    report = audit(tmp_path, "row", train, model={"kind": "squared"}, test=None, group_by="source")
    found = data(report)
    assert found["regression"]
    assert found["rows"]["given"][0] == "900"
    assert 'id="classes"' not in html(report)
    assert "By source" in html(report)


def test_a_second_night_has_a_trend_and_what_reviewers_found(tmp_path: Path) -> None:
    first = audit(tmp_path)
    assert 'id="trend"' not in html(first)
    listed = first.suspects
    said = ["mislabeled"] * 4 + ["correct"] * 2
    told = pd.DataFrame({"id": listed.id.head(6), "verdict": said})
    told.to_csv(tmp_path / "verdicts.csv", index=False)
    import_verdicts(first.run_dir.parent, tmp_path / "verdicts.csv")
    second = audit(tmp_path)
    text = html(second)
    assert "Trend over 2 nights" in text
    assert set(data(second)["rows"]["state"]) <= {"new", "persisting"}
    # What they were told, not the certainty that their verdicts gave.
    found = [int(n) for n in re.findall(r"(\d+) reviewed rows of mean", text)]
    assert sum(found) == 6
    assert "reviewers found 67% wrong in 6 verdicts (95% interval 30% to 90%)" in text


def test_what_reviewers_found_is_told_when_nothing_is_left_to_look_at() -> None:
    run = copy.deepcopy(RUN)
    run["detection"] |= {
        "n_suspects": 0, "estimated_errors": 0.0, "estimated_errors_low": 0.0, "estimated_errors_high": 3.0,
        "estimated_precision": None, "estimated_recall": 0.0, "measured_precision": 0.9, "measured_on": 40,
        "measured_precision_low": 0.77, "measured_precision_high": 0.96,
    }  # fmt: skip
    shown = figures(run)
    assert [(figure.value, figure.name) for figure in shown[2:]] == [("90%", "of reviewed rows wrong")]
    assert shown[2].meaning == "reviewers found 90% wrong in 40 verdicts (95% interval 77% to 96%)"


def content(**changes: Any) -> PageContent:
    suspects = pa.table(
        {
            "id": ["a", "b", "c"],
            "given_label": ["<i>", "x", "x"],
            "suggested_label": ["x", None, "<i>"],
            "p_mislabeled": [0.99, 0.9, 0.6],
            "rank": [1, 2, 3],
            "row_fingerprint": pa.array([2**64 - 1, 2, 3], pa.uint64()),
            "reason": ["</script><script>alert(1)</script>", None, None],
            "state": ["new", "persisting", "reopened"],
            "rank_change": [None, 4, -2],
        }
    )
    whole = PageContent(
        started=datetime(2026, 2, 1, 2, 0, tzinfo=UTC),
        suspects=suspects,
        detailed=3,
        groups={},
        tables={},
        classes=("<i>", "x"),
        distribution=Distribution(np.arange(20), np.arange(20) * 0.5),
    )
    return replace(whole, **changes)


RUN: dict[str, Any] = {
    "name": "n",
    "train": {"rows": 50, "files": [{"path": "a<b>.parquet", "rows": 50}], "fingerprint": "sha256:0"},
    "test": {"rows": 5, "sampled_from_train": False},
    "model": {"task": "classification", "kind": "softmax", "features": 3, "outputs": 2, "l2": 0.1},
    "solver": {"kind": "direct", "unconverged_test_points": 0},
    "self_check": None,
    "notes": ["<b>note</b>"],
    "gates": [{"passed": False, "reason": "gates.suspects: <u>"}, {"passed": True, "reason": "fine"}],
    "seconds": {"fit": 1.0},
    "detection": {
        "n_suspects": 3, "estimated_errors": 2.5, "estimated_errors_low": 1.0, "estimated_errors_high": 4.0,
        "basis": "prior", "evidence": "e", "estimated_precision": 0.83, "estimated_recall": None, "power": {},
        "measured_precision": 0.5, "measured_precision_low": 0.215, "measured_precision_high": 0.785,
        "measured_on": 8,
    },
}  # fmt: skip


def test_views_have_room_for_thousands_of_classes_and_groups() -> None:
    n = 20_000
    numbers = np.linspace(100.0, 1.0, n)
    own = {
        "rows": np.full(n, 200), "suspects": np.arange(n), "estimated_errors": numbers,
        "estimated_errors_low": numbers / 2, "estimated_errors_high": numbers * 2,
        "error_rate": numbers / 200,
    }  # fmt: skip
    labels = [f"class {i}" for i in range(n)]
    pairs = {"true_label": labels[:-1], "given_label": labels[1:], "estimated_errors": numbers[1:] / 50}
    group = {"group_by": ["source"] * n, "value": [None, *labels[1:]]}
    influence = dict.fromkeys(("times_overall", "mean_test_influence", "mean_test_group_influence"), numbers)
    found = view_data(
        {
            "classes": pa.table(
                {"label": labels[::-1], **{name: column[::-1] for name, column in own.items()}}
            ),
            "noise_matrix": pa.table(pairs),
            "groups": pa.table({**group, **own, **influence}),
        }
    )
    assert len(as_json(found)) < 250_000
    assert len(found["classes"]) > 500
    assert found["classes"][0] == [
        "class 0", 200, 0, 100.0, 50.0, 200.0, 0.5, [], [["class 1", float(f"{numbers[1] / 50:.4g}")]], 0, 0,
    ]  # fmt: skip
    assert found["groups"][0] == ["source", None, 200, 0, 100.0, 50.0, 200.0, 0.5, 100.0, -100.0]


def long_tables(label: str) -> dict[str, pa.Table]:
    """Tables of 60 classes and of 200 groups in each of two columns, all named at length."""
    names = [f"{i} {label}" for i in range(60)]
    pairs = [(one, other) for one in names for other in names if one != other]
    n = 400
    group = {"group_by": ["a"] * 200 + ["b"] * 200, "value": [f"{i} {label}" for i in range(n)]}
    figures = ("estimated_errors", "estimated_errors_low", "estimated_errors_high", "error_rate")
    harm = ("times_overall", "mean_test_influence", "mean_test_group_influence")

    def numbers(names: tuple[str, ...], rows: int) -> dict[str, Any]:
        return {"rows": [9] * rows, "suspects": [2] * rows, **{name: [1.5] * rows for name in names}}

    return {
        "classes": pa.table({"label": names, **numbers(figures, 60)}),
        "noise_matrix": pa.table(
            {
                "true_label": [one for one, _ in pairs],
                "given_label": [other for _, other in pairs],
                "estimated_errors": [1.5] * len(pairs),
            }
        ),
        "groups": pa.table({**group, **numbers((*figures, *harm), n)}),
    }


@pytest.mark.parametrize("repeats", [6, 60, 2000])
def test_tables_stay_within_bounds_however_long_their_labels(repeats: int) -> None:
    """Characters that are longer still once they are escaped."""
    tables = long_tables("é<&\"'> long, " * repeats)
    whole = content(tables=tables, classes=tables["classes"].column("label").to_pylist())
    parts = parts_of(whole)
    assert parts.n_bytes < 1_400_000
    text = render_page(whole, {**RUN, "notes": [f"Label {whole.classes[0]} is rare."] * 50})
    assert "20 more notes are in run.json." in text
    assert len(text.encode()) - parts.n_bytes < 250_000
    listed = text.count('href="#class=')
    assert (listed == 60) == (repeats == 6)
    if listed < 60:
        assert f"{60 - listed} more are in classes.parquet" in text


def test_classes_say_how_many_more_they_are_taken_for() -> None:
    """Of 59 the table names four, the view six."""
    tables = long_tables("x")
    assert view_data(tables)["classes"][0][9:] == [53, 53]
    text = parts_of(content(tables=tables, classes=["0 x", "1 x"])).markup
    assert text.count("and 55 more") == 60


def test_the_page_stays_small_with_long_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What labels take in tables and plots is not left to examples."""
    monkeypatch.setattr(gathering, "_ROW_BYTES", 90_000)
    monkeypatch.setattr(gathering, "_ALL_BYTES", 150_000)
    train = frame(N).assign(text="word " * 300)
    train["label"] = train.label.astype(str) + "&" * 200
    report = audit(tmp_path, {"kind": "text", "columns": "text"}, train, test=None)
    found = data(report)
    assert 0 < len(found["train"]) < 150
    assert len(html(report).encode()) < 150_000 + 80_000


def test_words_of_the_data_are_escaped_in_the_file() -> None:
    text = render_page(content(), RUN)
    assert text.count("<script") == text.count("</script>") == 2
    assert "&lt;b&gt;note&lt;/b&gt;" in text
    assert "gates.suspects: &lt;u&gt;" in text
    assert "fine" not in re.sub(r"(?s)<script.*?</script>|<style.*?</style>", "", text)
    assert "reviewers found 50% wrong in 8 verdicts (95% interval 22% to 78%)" in text
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:)?//", text)
    # uint64 is beyond the numbers of JavaScript.
    assert '"18446744073709551615"' in text


JARGON = (
    "temperature|likelihood|leave-one-out|matrix|odds|residual|scatter|calibrat|mixture|inlier|prior|noise|"
    "channel|bayes|posterior|sigma"
)


@pytest.mark.parametrize("basis", get_args(Basis))
def test_the_headline_is_explained_without_statistics(basis: str) -> None:
    """What the estimate rests on, too; a statistician's words of it stand at the end."""
    evidence = "a temperature (0.4) of <greatest> likelihood"
    run = {**RUN, "detection": {**RUN["detection"], "basis": basis, "evidence": evidence}}
    how, sure = explanation(run)
    assert not re.search(JARGON, f"{how} {sure}", re.I)
    assert len(sure) > 150
    head, end = render_page(content(), run).split('<section id="about"')
    assert "temperature" not in re.sub(r"(?s)<style.*?</style>", "", head)
    assert "a temperature (0.4) of &lt;greatest&gt; likelihood" in end


def test_captions_are_sentences_in_both_colour_schemes() -> None:
    """A legend ends without a full stop; in the dark, more is lighter."""
    depths: dict[str, Any] = {"depth": [10, 20], "is_list": [False, True], "estimated_precision": [0.9, 0.8]}
    for kind in ("random", "nearest"):
        depths |= {f"power_{kind}{end}": [0.4, 0.5] for end in ("", "_low", "_high")}
    tables = {**long_tables("x"), "depths": pa.table(depths)}
    text = render_page(content(tables=tables, classes=tables["classes"].column("label").to_pylist()), RUN)
    captions = re.findall(r"(?s)<figcaption>(.*?)</figcaption>", text)
    assert len(captions) >= 3
    assert not [caption for caption in captions if re.search(r">\s*\.|dark", caption, re.I)]
    assert "The stronger the colour, the more" in text


def test_history_is_drawn_from_two_nights_on() -> None:
    nights = pd.DataFrame(
        {
            "started": pd.to_datetime(["2026-01-31T02:00Z", "2026-02-01T02:00Z"]),
            "n_suspects": [4, 3],
            "estimated_errors": [3.5, 2.5],
            "estimated_errors_low": [2.0, 1.0],
            "estimated_errors_high": [6.0, 4.0],
            "new": pd.array([4, 1], "Int64"),
            "persisting": pd.array([0, 1], "Int64"),
            "reopened": pd.array([0, 1], "Int64"),
            "resolved": pd.array([None, 2], "Int64"),
        }
    )
    text = render_page(content(history=nights), RUN)
    assert "Trend over 2 nights" in text
    assert "1 new, 1 persisting, 1 reopened, 2 resolved" in re.sub(r"\s+", " ", text)
    assert "31 Jan" in text
    assert "NaN" not in text
    assert "nan" not in "".join(re.findall(r'points="[^"]*"', text))
    assert 'id="trend"' not in render_page(content(history=nights.tail(1)), RUN)


def test_verdicts_are_held_against_what_was_told() -> None:
    text = render_page(content(reviewed=[Reviewed(0.9, 20, 0.85, 0.64, 0.95)]), RUN)
    assert "20 reviewed rows of mean p_mislabeled 0.90: 85% wrong (95% interval 64% to 95%)" in text


def test_shares_have_the_digits_that_they_need() -> None:
    assert [percent(share) for share in (0, 0.0001, 0.012, 0.25, 0.999, 1)] == [
        "0%", "under 0.1%", "1.2%", "25%", "over 99%", "100%",
    ]  # fmt: skip


def contrast(one: str, other: str) -> float:
    """WCAG's, of two colours as #rrggbb."""

    def luminance(colour: str) -> float:
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return float(linear @ (0.2126, 0.7152, 0.0722))

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_words_can_be_read_on_every_ground(scheme: int) -> None:
    style = files("influence_batch.report.page").joinpath("assets", "page.css").read_text(encoding="utf-8")
    blocks = re.findall(r"(?s):root \{(.*?)\}", style)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6})", blocks[scheme]))
    words = ("ink", "soft", "faint", "s1", "s2", "s3", "s4", "bad")
    pairs = [(word, ground) for word in words for ground in ("back", "panel", "wash", "open")]
    pairs += [("ink", "warn-back"), ("ink", "bad-back"), ("on", "s1"), ("back", "ink")]
    assert [pair for pair in pairs if contrast(*(colours[name] for name in pair)) < 4.5] == []
