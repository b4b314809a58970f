"""The page by keyboard, on a phone, in both colour schemes and at its largest, in a real Chromium."""

from __future__ import annotations

import base64
import io
import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from PIL import Image
from selenium.webdriver.common.keys import Keys

from influence_batch import page as gathering
from influence_batch.report.page import (
    Examples,
    PageContent,
    Reviewed,
    page_rows,
    parts_of,
    render_page,
)
from influence_batch.report.page.content import as_json
from tests.report.browser import Browser
from tests.report.test_page import RUN, content, long_tables

LABELS = [f"label {i}" for i in range(7)]
PAIRS = [(one, other) for one in LABELS for other in LABELS if one != other]
# Every strength of colour from next to nothing to the most.
FLOWS = dict(zip(PAIRS, np.linspace(0.4, 99.6, len(PAIRS))[::-1].tolist(), strict=True))


def rich(rows: int = 120, **changes: Any) -> PageContent:
    """All sections, plots and kinds of a mark that there are."""
    cycle = np.arange(rows)
    ids = [f"row-{i}" for i in range(rows)]
    near = [[f"n{i}", f"m{i}"] for i in range(rows)]
    suspects = pa.table(
        {
            "id": ids,
            "given_label": [LABELS[i % 7] for i in cycle],
            "suggested_label": [None if i % 9 == 8 else LABELS[(i + 1) % 7] for i in cycle],
            "p_mislabeled": np.linspace(0.999, 0.5, rows),
            "rank": cycle + 1,
            "row_fingerprint": pa.array(cycle, pa.uint64()),
            "reason": [f"Labelled {LABELS[i % 7]}, but {LABELS[(i + 1) % 7]} fits better." for i in cycle],
            "state": [("new", "persisting", "reopened")[i % 3] for i in cycle],
            "verdict": [(None, "mislabeled", "correct", "ambiguous")[i % 4] for i in cycle],
            "nearest_given_ids": near,
            "nearest_given_distances": [[0.5, 1.5]] * rows,
            "nearest_suggested_ids": near,
            "nearest_suggested_distances": [[0.25, 2.5]] * rows,
        }
    )
    n_nights = 9
    nights = pd.DataFrame(
        {
            "started": pd.date_range("2026-01-25T02:00Z", periods=n_nights),
            "n_suspects": 3000 + 10 * np.arange(n_nights),
            "estimated_errors": 2500.0 + np.arange(n_nights),
            "estimated_errors_low": 2000.0,
            "estimated_errors_high": 60_000.0,
            **{name: 100 + i for i, name in enumerate(("new", "persisting", "reopened", "resolved"))},
        }
    )
    numbers = {"rows": [900] * 7, "suspects": [20] * 7, "error_rate": np.linspace(0.01, 0.4, 7)}
    errors = ("estimated_errors", "estimated_errors_low", "estimated_errors_high")
    numbers |= dict.fromkeys(errors, np.linspace(9.0, 1.0, 7))
    influence = ("times_overall", "mean_test_influence", "mean_test_group_influence")
    depths: dict[str, Any] = {"depth": [10, 100, 3000, 60_000], "is_list": [False, False, True, False]}
    depths["estimated_precision"] = [0.99, 0.9, 0.8, 0.1]
    powers = {"random": np.array([0.2, 0.4, 0.7, 0.95]), "nearest": np.array([0.12, 0.3, 0.6, 0.9])}
    for kind, power in powers.items():
        ends = {"": power, "_low": power - 0.1, "_high": power + 0.04}
        depths |= {f"power_{kind}{end}": values.tolist() for end, values in ends.items()}
    true, given = zip(*FLOWS, strict=True)
    whole = {
        "suspects": suspects,
        "groups": {"annotator": [f"ann {i % 5}" for i in cycle]},
        "tables": {
            "classes": pa.table({"label": LABELS, **numbers}),
            "groups": pa.table(
                {
                    "group_by": ["annotator"] * 7, "value": [f"ann {i}" for i in range(7)],
                    **numbers, **dict.fromkeys(influence, np.linspace(2.0, -1.0, 7)),
                }
            ),
            "depths": pa.table(depths),
            "noise_matrix": pa.table(
                {"true_label": true, "given_label": given, "estimated_errors": list(FLOWS.values())}
            ),
        },
        "classes": LABELS,
        "reviewed": [Reviewed(0.9, 20, 0.85, 0.64, 0.95)],
        "history": nights,
        "detailed": rows,
    }  # fmt: skip
    return content(**{**whole, **changes})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rich") / "report.html"
    examples = Examples([{"k": "t", "s": "some words"}], {"row-0": 0, "n0": 0})
    path.write_text(render_page(rich(train=examples), RUN), encoding="utf-8")
    return path


@pytest.fixture
def page(chromium: Browser, file: Path) -> Browser:
    chromium.open(file)
    return chromium


def test_the_figures_of_every_plot_are_had_without_a_pointer(page: Browser) -> None:
    tables = []
    for details in page.all(".as-table"):
        table = details.find_element("css selector", "table")
        assert not table.is_displayed()
        details.find_element("css selector", "summary").send_keys(Keys.ENTER)
        assert table.is_displayed()
        script = "return [...arguments[0].rows].map(row => [...row.cells].map(cell => cell.innerText))"
        tables.append(page.js(script, table))
    trend, distribution, depths, reviewed, (_, *shown) = tables
    assert trend[:2] == [
        ["Night, UTC", "Wrong, about", "On the list", "New", "Reopened", "Persisting", "Resolved"],
        ["2 Feb 2026, 02:00", "2,508 (2,000 to 60,000)", "3,080", "100", "102", "101", "103"],
    ]
    assert len(trend) == 1 + 9
    assert distribution[0] == ["p_mislabeled", "Rows", "Wrong, about"]
    counts = rich().distribution.counts[1:]
    assert [int(rows.replace(",", "")) for _, rows, _ in distribution[1:]] == counts[counts > 0].tolist()
    ends = [at.split(" to ") for at, *_ in distribution[1:]]
    assert [[float(end) for end in pair] for pair in ends] == [
        pytest.approx([at / 20, (at + 1) / 20]) for at in 1 + np.flatnonzero(counts)
    ]
    expected = rich().distribution.expected[1:][counts > 0]
    assert [float(wrong) for *_, wrong in distribution[1:]] == pytest.approx(expected.tolist(), rel=5e-3)
    assert depths == [
        ["Rows from the top", "Wrong, as estimated", "Finds, any label", "Finds, most confusable label"],
        ["10", "99%", "20% (10% to 24%)", "12% (2.0% to 16%)"],
        ["100", "90%", "40% (30% to 44%)", "30% (20% to 34%)"],
        ["3,000 (the list)", "80%", "70% (60% to 74%)", "60% (50% to 64%)"],
        ["60,000", "10%", "95% (85% to 99%)", "90% (80% to 94%)"],
    ]
    assert reviewed == [
        ["Mean p_mislabeled", "Reviewed", "Found wrong", "95% interval"],
        ["0.90", "20", "85%", "64% to 95%"],
    ]
    assert [(true, given) for true, given, _ in shown] == list(FLOWS)
    assert [float(errors) for *_, errors in shown] == pytest.approx(list(FLOWS.values()), rel=5e-3)


def test_pages_of_the_list_are_turned_by_keyboard(page: Browser) -> None:
    """120 rows: three pages."""

    def at() -> tuple[str, str, list[str]]:
        first, *_, last = page.texts("tr.row td.c-id")
        disabled = page.js("return [...document.querySelectorAll('.pager :disabled')].map(one => one.id)")
        return page.one("#page").get_attribute("value") or "", f"{first} {last}", disabled

    begin = ("1", "row-0 row-49", ["first", "previous"])
    middle = ("2", "row-50 row-99", [])
    end = ("3", "row-100 row-119", ["next", "last"])
    assert at() == begin
    assert " ".join(page.one(".pager .at").text.split()) == "Page of 3, rows 1 to 50"
    for button, place in (("last", end), ("previous", middle), ("first", begin), ("next", middle)):
        page.one(f"#{button}").send_keys(Keys.ENTER)
        assert at() == place
        assert page.js("return document.activeElement === document.querySelector('tr.row')")
    field = page.one("#page")
    for typed, place in (("3", end), ("0", begin), ("2.", middle), ("999999", end), ("x", end)):
        field.send_keys(Keys.CONTROL, "a", Keys.NULL, typed, Keys.ENTER)
        assert at() == place
    # What is typed and not asked for is forgotten; letters in the field are no verdicts.
    field.send_keys(Keys.CONTROL, "a", Keys.NULL, "m", Keys.TAB)
    assert at() == end
    assert "No verdicts" in page.one("#tray-words").text
    page.one("#search").send_keys("row-11")
    page.js("return new Promise(done => setTimeout(done, 150))")
    assert not page.one("#pager").is_displayed()


# Of each text in sight: WCAG's contrast with what is painted behind it, layer by layer.
CONTRASTS = """
const numbers = (colour) => {
  const found = colour.match(/[\\d.]+/g).map(Number);
  return found.length === 3 ? [...found, 1] : found;
};
const over = ([r, g, b, a], below) => [r, g, b].map((c, i) => a * c + (1 - a) * below[i]);
const luminance = (colour) => {
  const [r, g, b] = colour.map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
function ground(node) {
  const layers = [];
  for (let at = node; at; at = at.parentElement) layers.push(numbers(getComputedStyle(at).backgroundColor));
  let colour = [255, 255, 255];
  for (const layer of layers.reverse()) colour = over(layer, colour);
  if (node.matches(".cell-text")) {
    const style = getComputedStyle(node.previousElementSibling);
    const [r, g, b] = numbers(style.fill);
    colour = over([r, g, b, Number(style.fillOpacity)], colour);
  }
  return colour;
}
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
  if (node.closest("script, title, option, :disabled, .skip")) continue;
  const style = getComputedStyle(node);
  const below = ground(node);
  const ink = over(numbers(node.namespaceURI.endsWith("svg") ? style.fill : style.color), below);
  const [low, high] = [luminance(ink), luminance(below)].sort((a, b) => a - b);
  found.push([(high + 0.05) / (low + 0.05), walker.currentNode.data.trim(), node.getAttribute("class")]);
}
return found;
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_can_be_read(page: Browser, scheme: str) -> None:
    with page.scheme(scheme):
        for summary in page.all(".as-table summary"):
            page.click(summary)
        page.click(page.one("tr.row"))
        page.click(page.one("tr.detail [data-verdict=mislabeled]"))
        found = page.js(CONTRASTS)
        dark = page.js("return matchMedia('(prefers-color-scheme: dark)').matches")
    assert dark == (scheme == "dark")
    assert len(found) > 300
    assert sum("cell-text" in (class_ or "") for *_, class_ in found) > 30
    assert [(text, class_, ratio) for ratio, text, class_ in found if ratio < 4.5] == []


# Of each text in a chart: its height as it is drawn, its place in the chart, and its words.
CHART_TEXTS = """
return [...document.querySelectorAll(".chart")].map((chart) => {
  const whole = chart.getBoundingClientRect();
  const scale = chart.getScreenCTM().a;
  return [...chart.querySelectorAll("text")].map((text) => {
    const box = text.getBoundingClientRect();
    return {
      size: parseFloat(getComputedStyle(text).fontSize) * scale, words: text.textContent,
      turned: text.hasAttribute("transform"),
      left: box.left - whole.left, right: box.right - whole.left,
      top: box.top - whole.top, bottom: box.bottom - whole.top,
      inside: box.left >= whole.left - 1 && box.right <= whole.right + 1
        && box.top >= whole.top - 2 && box.bottom <= whole.bottom + 2,
    };
  });
});
"""


def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two texts are over one another; lines may touch."""
    across = min(one["right"], other["right"]) - max(one["left"], other["left"])
    return across > 0 and min(one["bottom"], other["bottom"]) - max(one["top"], other["top"]) > 4


@pytest.mark.parametrize("width", [390, 481, 740, 993])
def test_words_in_charts_are_large_enough_at_every_width(page: Browser, width: int) -> None:
    """At a phone's, and where each layout has the least room."""
    with page.phone(width):
        page.js("document.querySelectorAll('.as-table').forEach(table => { table.open = true; })")
        assert page.js("return document.documentElement.scrollWidth") <= width
        first = "return [...document.querySelectorAll('.as-table tbody td:first-child')]"
        assert min(page.js(f"{first}.map(cell => cell.clientWidth)")) > 100  # no column of single letters
        charts = page.js(CHART_TEXTS)
    assert len(charts) == 6
    texts = [text for chart in charts for text in chart]
    assert [text for text in texts if text["size"] < 11.0] == []
    assert [text for text in texts if not text["inside"]] == []
    for chart in charts:
        level = [text for text in chart if not text["turned"]]
        pairs = itertools.combinations(level, 2)
        assert [(one["words"], other["words"]) for one, other in pairs if overlap(one, other)] == []


@pytest.mark.parametrize(("classes", "wide"), [(12, False), (13, True), (60, True)])
def test_a_matrix_of_many_classes_has_the_width_it_needs(
    chromium: Browser, tmp_path: Path, classes: int, wide: bool
) -> None:
    """Nothing of its names is cut off, and on a screen's whole width nothing is to be scrolled."""
    names = [f"{i} longest name there is" for i in range(classes)]
    pairs = [(one, other) for one in names for other in names if one != other]
    true, given = zip(*pairs, strict=True)
    flows = {"true_label": true, "given_label": given, "estimated_errors": [1.5] * len(pairs)}
    file = tmp_path / "report.html"
    text = render_page(content(tables={"noise_matrix": pa.table(flows)}, classes=names), RUN)
    file.write_text(text, encoding="utf-8")
    with chromium.phone(1200):
        chromium.open(file)
        *_, matrix = chromium.js(CHART_TEXTS)
        figure = "const figure = document.querySelector('.matrix'); return "
        spans = chromium.js(f"{figure} figure.offsetWidth > 0.9 * figure.parentNode.offsetWidth")
        assert chromium.js(f"{figure} figure.querySelector('.heat').scrollWidth <= figure.clientWidth - 34")
    assert spans == wide
    assert [text for text in matrix if text["size"] < 11.0 or not text["inside"]] == []
    listed = len(chromium.texts(".matrix .as-table tbody tr"))
    shown = min(classes, 20)
    assert listed == min(shown * (shown - 1), 100)
    left_out = shown * (shown - 1) - listed
    said = [f"{left_out} pairs with fewer in noise_matrix.parquet."]
    assert chromium.texts(".matrix .as-table .quiet") == said


def image(random: np.random.Generator) -> dict[str, Any]:
    """Pixels that do not compress, as of an example of 28 by 28."""
    stream = io.BytesIO()
    Image.fromarray(random.integers(0, 256, (28, 28), dtype=np.uint8)).save(stream, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    return {"k": "i", "s": url, "w": 28, "h": 28}


def test_a_page_of_60_000_rows_is_small_and_soon_of_use(chromium: Browser, tmp_path: Path) -> None:
    """As many rows as a page may have, with as many examples as there is room for."""
    random = np.random.default_rng(0)
    tables = {**rich().tables, **long_tables("with a name")}
    whole = rich(gathering.MOST_ROWS, tables=tables, classes=tables["classes"].column("label").to_pylist())
    rows, parts = len(as_json(page_rows(whole))), parts_of(whole)
    assert rows < gathering._ROW_BYTES
    items = [image(random)]
    room = gathering._ALL_BYTES - rows - parts.n_bytes
    items += [image(random) for _ in range(room // (len(as_json(items[0])) + 1) - 1)]
    shown = Examples(items, {f"row-{i}": i for i in range(len(items))})
    run = {**RUN, "train": {**RUN["train"], "rows": 60_000}}
    run["detection"] = {**RUN["detection"], "n_suspects": 6_000}
    text = render_page(replace(whole, train=shown, parts=parts), run)
    assert 4_700_000 < len(text.encode()) < 5_000_000
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    chromium.open(file)
    # From the navigation until rows in another order are laid out.
    first, milliseconds = chromium.js(
        "document.querySelector('#head [data-sort=id] button').click();"
        "document.querySelector('#head [data-sort=id] button').click();"
        "const row = document.querySelector('tr.row'); row.getBoundingClientRect();"
        "return [row.querySelector('.c-id').textContent, performance.now()]"
    )
    assert first == f"row-{gathering.MOST_ROWS - 1}"
    assert milliseconds < 2000
    assert "the first 5,000 of 6,000 rows" in chromium.one("#list .left-out").text
