"""The page by keyboard, on a phone, in both colour schemes and at its largest, in a real Chromium."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from selenium.webdriver.common.keys import Keys

from influence_batch.report.page import Examples, PageContent, Reviewed, render_page
from tests.report.browser import Browser
from tests.report.test_page import RUN, content

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
            **dict.fromkeys(("new", "persisting", "reopened", "resolved"), 100),
        }
    )
    numbers = {"rows": [900] * 7, "suspects": [20] * 7, "error_rate": np.linspace(0.01, 0.4, 7)}
    errors = ("estimated_errors", "estimated_errors_low", "estimated_errors_high")
    numbers |= dict.fromkeys(errors, np.linspace(9.0, 1.0, 7))
    influence = ("times_overall", "mean_test_influence", "mean_test_group_influence")
    depths: dict[str, Any] = {"depth": [10, 100, 3000, 60_000], "is_list": [False, False, True, False]}
    depths["estimated_precision"] = [0.99, 0.9, 0.8, 0.1]
    for kind in ("random", "nearest"):
        depths |= {f"power_{kind}{end}": [0.1, 0.3, 0.6, 0.9] for end in ("", "_low", "_high")}
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


def test_the_figures_of_the_noise_matrix_are_had_without_a_pointer(page: Browser) -> None:
    summary = page.one(".flows summary")
    assert not page.one(".flows table").is_displayed()
    summary.send_keys(Keys.ENTER)
    assert page.one(".flows table").is_displayed()
    shown = page.js(
        "return [...document.querySelectorAll('.flows tbody tr')]"
        ".map(row => [...row.cells].map(cell => cell.innerText))"
    )
    assert [(true, given) for true, given, _ in shown] == list(FLOWS)
    assert [float(errors) for *_, errors in shown] == pytest.approx(list(FLOWS.values()), rel=5e-3)


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
        page.click(page.one(".flows summary"))
        page.click(page.one("tr.row"))
        page.click(page.one("tr.detail [data-verdict=mislabeled]"))
        found = page.js(CONTRASTS)
        dark = page.js("return matchMedia('(prefers-color-scheme: dark)').matches")
    assert dark == (scheme == "dark")
    assert len(found) > 300
    assert sum("cell-text" in (class_ or "") for *_, class_ in found) > 30
    assert [(text, class_, ratio) for ratio, text, class_ in found if ratio < 4.5] == []
