"""The page of a run in a real Chromium: hostile data, sorting, filters, evidence, verdicts, keyboard."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd
import pytest
from selenium.webdriver.common.keys import Keys

import influence_batch
from influence_batch.report.page import guarded_cell, plain_cell, render_page
from influence_batch.review import import_verdicts, load_verdicts
from tests.report.browser import Browser
from tests.report.test_page import RUN, content, long_tables

SCRIPT = "<script>window.hit = 1; alert(1)</script>"
BROKEN = '</script><img src=x onerror="window.hit = 2"> \'q\' "d"'
FORMULA = '=HYPERLINK("http://127.0.0.1/","x")'
LABELS = [SCRIPT, BROKEN, FORMULA]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> influence_batch.Report:
    """240 rows, 24 of them labelled wrong; labels, ids, texts and groups that would like to be markup."""
    folder = tmp_path_factory.mktemp("page")
    random = np.random.default_rng(0)
    n, m = 240, 40
    true = random.integers(0, 3, n + m)
    x = 6.0 * np.eye(3, 4)[true] + random.standard_normal((n + m, 4))
    label = true.copy()
    label[:24] = (label[:24] + 1) % 3
    ids = [f"row-{i}" for i in range(n + m)]
    ids[:6] = ["__proto__", "-5", "=1+1", "javascript:alert(1)", 'a,b"c', "<b>6</b>"]
    frame = pd.DataFrame({f"x{j}": x[:, j] for j in range(4)})
    frame["id"], frame["label"] = ids, np.array(LABELS, dtype=object)[label]
    frame["text"] = [f"{i} javascript:alert(1) {BROKEN}\u2028{SCRIPT}" for i in range(n + m)]
    frame["source"] = np.where(np.arange(n + m) % 2, SCRIPT, "plain & simple")
    frame.loc[np.arange(n + m) % 5 == 1, "source"] = None
    frame.iloc[:n].to_parquet(folder / "train.parquet")
    frame.iloc[n:].to_parquet(folder / "test.parquet")
    return influence_batch.audit(
        {
            "name": "hostile",
            "train": {"path": str(folder / "train.parquet"), "id": "id", "label": "label", "features": "x*"},
            "test": {"path": str(folder / "test.parquet")},
            "model": {"l2": 1e-2},
            "detection": {"budget": 30},
            "group_by": "source",
            "report": {"show": {"kind": "text", "columns": "text"}},
        },
        reports=folder / "reports",
    )


@pytest.fixture
def page(chromium: Browser, report: influence_batch.Report) -> Browser:
    chromium.open(report.run_dir / "report.html")
    return chromium


def ids(page: Browser) -> list[str]:
    return page.texts("tr.row td.c-id")


def test_it_opens_without_errors_and_without_network(page: Browser, report: influence_batch.Report) -> None:
    assert int(page.js("return document.documentElement.dataset.ready")) < 2000
    for row in page.all("tr.row")[:3]:
        page.click(row)
    console, schemes = page.logs()
    assert console == []
    assert schemes <= {"file", "data", "blob"}
    assert ids(page) == report.suspects.id.head(50).tolist()
    assert f"{len(report.suspects)}" in page.texts(".figures .value")[0]


def test_hostile_values_are_shown_and_do_nothing(page: Browser) -> None:
    for row in page.all("tr.row")[:10]:
        page.click(row)
    assert page.js("return window.hit") is None
    assert page.js("return document.scripts.length") == 2
    assert page.js("return document.querySelectorAll('main img, [onerror], [onclick]').length") == 0
    assert page.js("return [...document.querySelectorAll('a')].every(a => a.href.startsWith('file:'))")
    assert set(page.texts("tr.row .label")) <= set(LABELS)
    assert SCRIPT in page.texts("#classes a.link")
    assert "<script>" in page.texts("tr.detail .text")[0]
    # What would run were it markup is refused by the page's own policy.
    page.js(
        "const s = document.createElement('script'); s.textContent = 'window.hit = 3';document.body.append(s)"
    )
    assert page.js("return window.hit") is None


def test_it_sorts_filters_and_searches(page: Browser, report: influence_batch.Report) -> None:
    suspects = report.suspects
    by_id = next(head for head in page.all("#head th") if head.text.startswith("Id"))
    page.click(by_id.find_element("css selector", "button"))
    assert by_id.get_attribute("aria-sort") == "ascending"
    assert ids(page) != suspects.id.tolist()
    numbered = [int(name[4:]) for name in ids(page) if name.startswith("row-")]
    assert numbered == sorted(numbered)
    wanted = suspects.query("given_label == @SCRIPT").id.tolist()
    page.js(
        "const s = document.getElementById('filter-given'); s.value = arguments[0];"
        "s.dispatchEvent(new Event('change'))",
        f"={SCRIPT}",
    )
    assert sorted(ids(page)) == sorted(wanted)
    page.click(page.one("#clear"))
    assert len(ids(page)) == len(suspects)
    page.one("#filter-group0").send_keys("plain")
    plain = pd.read_parquet(report.run["train"]["files"][0]["path"]).query("source == 'plain & simple'").id
    assert set(ids(page)) == set(suspects.id) & set(plain)
    page.click(page.one("#clear"))
    page.one("#search").send_keys("__PROTO__")
    page.js("return new Promise(done => setTimeout(done, 150))")
    assert ids(page) == ["__proto__"]


def settle(page: Browser) -> None:
    """Wait until what an address asks for is shown."""
    page.js("return new Promise(done => setTimeout(done, 60))")


def figures(page: Browser) -> list[str]:
    return page.texts("#view .figures .value")


def test_a_class_has_a_view_of_its_own(page: Browser, report: influence_batch.Report) -> None:
    suspects, classes = report.suspects, report.classes.set_index("label")
    link = page.all("#classes a.link")[page.texts("#classes a.link").index(SCRIPT)]
    page.js("arguments[0].scrollIntoView({block: 'center'})", link)
    height = page.js("return scrollY")
    link.send_keys(Keys.ENTER)
    settle(page)
    assert page.js("return decodeURIComponent(location.hash)") == f"#class={SCRIPT}"
    assert page.texts("#view h2 .label") == [SCRIPT]
    assert page.js("return document.activeElement.id") == "view-title"
    assert not page.one("#classes").is_displayed()
    row = classes.loc[SCRIPT]
    said = figures(page)
    assert said[:2] == [f"{row.rows:.0f}", f"{row.suspects:.0f}"]
    assert float(said[2].removeprefix("≈ ")) == pytest.approx(row.estimated_errors, abs=0.51)
    assert float(said[3].removesuffix("%")) == pytest.approx(100 * row.error_rate, abs=0.51)
    low, high = (float(word) for word in re.findall(r"[\d.]+", page.texts("#view .meaning")[2]))
    assert low == pytest.approx(row.estimated_errors_low, abs=0.51)
    assert high == pytest.approx(row.estimated_errors_high, abs=0.51)
    assert ids(page) == suspects.query("given_label == @SCRIPT").id.tolist()
    flows = report.noise_matrix.query("estimated_errors >= 0.05")
    for block, own, other in ((0, "given_label", "true_label"), (1, "true_label", "given_label")):
        expected = flows[flows[own] == SCRIPT][other].tolist()
        assert page.texts(f"#view .pairs:nth-child({block + 1}) th") == expected
    page.click(page.one("#sides [data-side=suggested]"))
    assert ids(page) == suspects.query("suggested_label == @SCRIPT").id.tolist()
    # A pair leads to the other class; back goes the same way, to where the reader was.
    other_class = page.one("#view .pairs a.link")
    name = other_class.text
    page.click(other_class)
    settle(page)
    assert page.texts("#view h2 .label") == [name]
    page.driver.back()
    settle(page)
    assert page.texts("#view h2 .label") == [SCRIPT]
    page.driver.back()
    settle(page)
    assert page.one("#classes").is_displayed()
    assert not page.one("#view").is_displayed()
    assert ids(page) == suspects.id.head(50).tolist()
    assert page.js("return scrollY") == height
    assert page.js("return document.activeElement.textContent") == SCRIPT
    page.driver.forward()
    settle(page)
    assert page.texts("#view h2 .label") == [SCRIPT]
    page.click(page.one("#view .crumbs a"))
    settle(page)
    assert page.one("#classes").is_displayed()
    assert page.js("return location.hash") == "#classes"
    assert page.js("return window.hit") is None
    assert page.js("return document.querySelectorAll('main img, [onerror]').length") == 0


def test_a_view_says_how_many_pairs_it_leaves_out(chromium: Browser, tmp_path: Path) -> None:
    tables = long_tables("x")
    file = tmp_path / "report.html"
    file.write_text(render_page(content(tables=tables, classes=["0 x", "1 x"]), RUN), encoding="utf-8")
    chromium.open(file, "#class=0%20x")
    settle(chromium)
    assert [len(chromium.all(f"#view .pairs:nth-child({side}) th")) for side in (1, 2)] == [6, 6]
    assert chromium.texts("#view .pairs p") == ["and 53 more"] * 2


def test_long_labels_are_cut_in_sentences(chromium: Browser, tmp_path: Path) -> None:
    """Whole in a title and in the heading of their view."""
    long, other = "long $& <b>" * 200, "other " * 300
    said = f"Labelled {long}, but {other} with a probability of 97%; the nearest labelled {other} is nearer."
    suspects = content().suspects.slice(0, 1)
    for name, value in (("given_label", long), ("suggested_label", other), ("reason", said)):
        suspects = suspects.set_column(suspects.column_names.index(name), name, [[value]])
    file = tmp_path / "report.html"
    file.write_text(render_page(content(suspects=suspects, detailed=1), RUN), encoding="utf-8")
    chromium.open(file)
    chromium.click(chromium.one("tr.row"))
    shown = chromium.one("tr.detail .case p")
    cut = f"Labelled {long[:59]}…, but {other[:59]}… with a probability of 97%; the nearest labelled "
    assert shown.text == f"{cut}{other[:59]}… is nearer."
    assert shown.get_attribute("title") == said
    assert all(len(text) <= 60 for text in chromium.texts("tr.detail .facts dd"))
    chromium.js("document.querySelector('tr.detail .facts a').click()")
    settle(chromium)
    assert chromium.texts("#view h2 .label") == [long]
    assert chromium.logs()[0] == []


def test_filters_are_as_they_were_after_a_view(page: Browser) -> None:
    page.one("#filter-group0").send_keys("plain")
    before = ids(page)
    page.click(page.one("tr.row"))
    page.click(page.one("tr.detail .facts a"))
    settle(page)
    assert page.one("#view").is_displayed()
    assert set(page.texts("tr.row .label:not(.to)")) == set(page.texts("#view h2 .label"))
    page.driver.back()
    settle(page)
    assert ids(page) == before
    assert page.one("#filter-group0").get_attribute("value") == "=plain & simple"


@pytest.mark.parametrize("value", [SCRIPT, None])
def test_a_group_has_a_view_of_its_own(
    chromium: Browser, report: influence_batch.Report, value: str | None
) -> None:
    address = "#group=source" if value is None else f"#group=source={quote(value, safe='')}"
    chromium.open(report.run_dir / "report.html", address)
    settle(chromium)
    groups = report.groups
    row = groups[groups.value.isna() if value is None else groups.value == value].iloc[0]
    assert chromium.texts("#view h2 .label") == [value or "(none)"]
    shown = figures(chromium)
    assert shown[:2] == [f"{row.rows}", f"{row.suspects}"]
    assert float(shown[4]) == pytest.approx(-row.mean_test_group_influence, rel=5e-3)
    said = chromium.texts("#view .figures .meaning")[2]
    low, high = (float(word) for word in re.findall(r"[\d.]+", said))
    assert low == pytest.approx(row.estimated_errors_low, abs=0.51)
    assert high == pytest.approx(row.estimated_errors_high, abs=0.51)
    rows = pd.read_parquet(report.run["train"]["files"][0]["path"])
    mine = rows[rows.source.isna() if value is None else rows.source == value].id
    assert ids(chromium) == [id_ for id_ in report.suspects.id if id_ in set(mine)]
    chromium.click(chromium.one("#view .crumbs a"))
    settle(chromium)
    assert chromium.one("#groups").is_displayed()
    assert len(ids(chromium)) == len(report.suspects)
    assert chromium.js("return window.hit") is None


@pytest.mark.parametrize("address", ["#class=%E0%A4%A", "#group=nothing=x", "#group=", "#view"])
def test_an_address_that_is_none_shows_the_whole_page(
    chromium: Browser, report: influence_batch.Report, address: str
) -> None:
    chromium.open(report.run_dir / "report.html", address)
    settle(chromium)
    assert chromium.one("#classes").is_displayed()
    assert not chromium.one("#view").is_displayed()
    assert len(ids(chromium)) == len(report.suspects)
    assert chromium.logs()[0] == []


def test_a_class_without_figures_has_its_rows_all_the_same(
    chromium: Browser, report: influence_batch.Report
) -> None:
    chromium.open(report.run_dir / "report.html", "#class=no%20such%20class")
    settle(chromium)
    assert chromium.texts("#view h2 .label") == ["no such class"]
    assert "classes.parquet" in chromium.one("#view .sub").text
    assert ids(chromium) == []


def test_opening_a_row_shows_its_evidence(page: Browser, report: influence_batch.Report) -> None:
    first = report.suspects.iloc[0]
    page.click(page.one("tr.row"))
    assert page.texts("tr.detail .case p") == [first.reason]
    cards = page.texts("tr.detail .card .id")
    for column in ("nearest_given_ids", "nearest_suggested_ids", "harmed_test_ids"):
        assert set(first[column]) <= set(cards)
    # Neighbours and harmed test points are shown themselves, in the user's own words.
    texts = page.texts("tr.detail .card .text")
    assert len(texts) == len(cards)
    assert all("javascript:alert(1)" in text for text in texts)


def test_neighbours_that_are_on_the_list_are_marked(page: Browser, report: influence_batch.Report) -> None:
    listed = set(report.suspects.id)
    near = [[*row.nearest_given_ids, *row.nearest_suggested_ids] for row in report.suspects.itertuples()]
    at = next(i for i, ids in enumerate(near) if 0 < len(listed & set(ids)) < len(set(ids)))
    page.click(page.all("tr.row")[at])
    cards = page.js(
        "return [...document.querySelectorAll('tr.detail .strip')]"
        ".filter(s => /^Nearest/.test(s.textContent)).flatMap(s => [...s.querySelectorAll('.card')].map("
        "c => [c.querySelector('.id').textContent, /distance [^,]*, on the list too/.test(c.textContent)]))"
    )
    assert cards == [[id_, id_ in listed] for id_ in near[at]]


def test_the_table_has_a_reason_on_one_line(page: Browser, report: influence_batch.Report) -> None:
    """Beside a text, too, which takes much of the width."""
    assert "Reason" in page.texts("#head th")
    assert page.texts("tr.row td.c-reason") == report.suspects.reason.head(50).tolist()
    box = page.js("const b = document.querySelector('td.c-reason span').getBoundingClientRect(); return b")
    assert box["width"] > 120
    assert box["height"] < 30
    assert page.js("return document.documentElement.scrollWidth <= innerWidth")


def test_verdicts_become_a_csv_file(page: Browser, report: influence_batch.Report, tmp_path: Path) -> None:
    suspects = report.suspects.set_index("id")
    rows = {name: page.all("tr.row")[place] for place, name in enumerate(ids(page))}
    assert not page.one("#download").is_enabled()
    for name, keys in (("=1+1", "m"), ("-5", "c"), ('a,b"c', "a"), ("__proto__", "m")):
        rows[name].send_keys(keys)
    wrong = next(name for name in ("=1+1", "__proto__") if suspects.given_label[name] != FORMULA)
    other = "__proto__" if wrong == "=1+1" else "=1+1"
    page.click(rows[wrong])
    corrected, note = page.one("tr.detail .corrected input"), page.one("tr.detail .note-field input")
    corrected.clear()
    corrected.send_keys(FORMULA, Keys.TAB)
    note.send_keys('@SUM(A1), "sure"', Keys.TAB)
    page.one("#reviewer").send_keys("Ada", Keys.TAB)
    # Kept over a reload.
    page.driver.refresh()
    assert "4 verdicts" in page.one("#tray-words").text
    page.click(page.one("#download"))
    text = page.downloaded().decode("utf-8")
    table = {row["id"]: row for row in csv.DictReader(io.StringIO(text, newline=""))}
    assert list(next(iter(table.values()))) == [
        "id", "verdict", "given_label", "corrected_label", "row_fingerprint", "reviewer", "time", "note",
        "run_id",
    ]  # fmt: skip
    # An apostrophe keeps spreadsheets from taking text for a formula; a number is none.
    assert {name: row["verdict"] for name, row in table.items()} == {
        "'=1+1": "mislabeled", "-5": "correct", 'a,b"c': "ambiguous", "__proto__": "mislabeled",
    }  # fmt: skip
    table = {plain_cell(name): row for name, row in table.items()}
    first = table[wrong]
    assert first["corrected_label"] == f"'{FORMULA}"
    assert first["note"] == '\'@SUM(A1), "sure"'
    assert {row["reviewer"] for row in table.values()} == {"Ada"}
    assert table["-5"]["corrected_label"] == ""
    assert plain_cell(table[other]["corrected_label"]) == suspects.suggested_label[other]
    for name, row in table.items():
        assert row["row_fingerprint"] == str(suspects.row_fingerprint[plain_cell(name)])
        assert plain_cell(row["given_label"]) == suspects.given_label[plain_cell(name)]
        assert pd.Timestamp(row["time"]).tzinfo is not None
    # And it is what `review` imports.
    file = tmp_path / "verdicts.csv"
    file.write_text(text, encoding="utf-8", newline="")
    audit = report.run_dir.parent
    assert import_verdicts(audit, file).added == 4
    stored = load_verdicts(audit)
    assert stored is not None
    kept = stored.set_index("id")
    assert set(kept.index) == {"=1+1", "-5", 'a,b"c', "__proto__"}
    assert kept.corrected_label[wrong] == FORMULA
    assert kept.note[wrong] == '@SUM(A1), "sure"'
    assert set(kept.reviewer) == {"Ada"}
    assert set(kept.run_id) == {report.run["run_id"]}


def test_the_page_guards_cells_as_the_export_does(page: Browser) -> None:
    cells = [
        "=1", "+1", "+1 of 2", "-x", "-5", ".5e-3", "-1e5", "'=1", "''", "@a", "\t=", "\r", " =1",
        "\ufeff=1", "\u00a0+a", "\x1c=1", "'\x1c=1", "-5\n", "a=b", "",
    ]  # fmt: skip
    guarded = page.js(
        "const {formula, number} = JSON.parse(document.getElementById('data').textContent).guard;"
        "const begins = new RegExp(`^(?:${formula})`), whole = new RegExp(`^(?:${number})$`);"
        "return arguments[0].map(text => (begins.test(text) && !whole.test(text) ? `'${text}` : text))",
        cells,
    )
    assert guarded == [guarded_cell(text) for text in cells]
    assert [plain_cell(text) for text in guarded] == cells


def test_it_is_used_by_keyboard_alone(page: Browser) -> None:
    body = page.one("body")
    body.send_keys("/")
    assert page.js("return document.activeElement.id") == "search"
    for _ in range(60):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        if page.js("return document.activeElement.className") == "row":
            break
    first = page.driver.switch_to.active_element
    first.send_keys(Keys.ARROW_DOWN)
    second = page.driver.switch_to.active_element
    assert second.get_attribute("data-row") == "1"
    second.send_keys(Keys.ENTER)
    assert second.get_attribute("aria-expanded") == "true"
    second.send_keys("a")
    assert page.texts("tr.detail [aria-pressed=true]") == ["Ambiguous"]
    second.send_keys("k")
    assert page.js("return document.activeElement.dataset.row") == "0"
    second.send_keys(Keys.ESCAPE)
    assert page.all("tr.detail") == []


def test_it_fits_a_narrow_screen(page: Browser) -> None:
    with page.phone():
        page.click(page.one("tr.row"))
        assert page.js("return document.documentElement.scrollWidth") <= 390
        page.js("location.hash = document.querySelector('#classes a.link').hash")
        settle(page)
        page.click(page.one("tr.row"))
        assert page.js("return document.documentElement.scrollWidth") <= 390
        assert (
            page.js("return document.querySelector('tr.detail .verdict').getBoundingClientRect().right")
            <= 390
        )
