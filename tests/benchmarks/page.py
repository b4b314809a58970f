"""The page of 60,000 examples: its size, and when it can be used, in a real Chromium.

    pip install '.[test]'        # and Debian's chromium and chromium-driver
    python tests/benchmarks/page.py ../shared/data/mnist.npz

Audits MNIST's training set with a twentieth of its labels changed to any other, images in the report. Prints
the rows of the list, the size of report.html, and, over some visits, seconds from navigation to a table that
has been sorted by a click. Whatever the browser logs, errors of the page among them, is printed too.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

import influence_batch

VISITS = 5
# The first id, and milliseconds since navigation began, once the table is drawn by descending ids.
SORTED = """
const button = () => document.querySelector("#head [data-sort=id] button");
button().click();
button().click();
const row = document.querySelector("tr.row");
row.getBoundingClientRect();
return [row.querySelector(".c-id").textContent, performance.now()];
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("source", type=Path, help="mnist.npz as Keras has it")
    parser.add_argument("--rows", type=int, default=60_000, help="at most so many, the first")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write(options.source, Path(folder) / "train.parquet", options.rows)
        config = {
            "name": "page",
            "train": {"path": f"{folder}/train.parquet", "id": "id", "label": "label", "features": "x"},
            "influence": {"test_sample": 100},
            "report": {"show": {"kind": "image", "shape": [28, 28], "range": [0, 1]}},
            "reports": folder,
        }
        report = influence_batch.audit(config, overrides=options.settings)
        page = Path(report.run_dir) / "report.html"
        sys.stdout.write(
            f"{report.run['train']['rows']} rows, {len(report.suspects)} on the list; "
            f"report.html {page.stat().st_size / 1e6:.2f} MB\n"
        )
        times, first, logs = visited(page, Path(folder))
        last = str(report.suspects.id.max())
        wrong = "" if first == last else f"; {first} came first, not {last}"
        sys.stdout.write(f"sorted {min(times):.2f} to {max(times):.2f} s after navigation{wrong}\n")
        sys.stdout.writelines(f"logged: {line}\n" for line in logs)


def write(source: Path, path: Path, most: int) -> None:
    """Training images as Parquet, pixels from 0 to 1, with wrong labels."""
    with np.load(source) as data:
        pixels = data["x_train"].reshape(-1, 784)[:most].astype(np.float32) / 255.0
        labels = data["y_train"][:most].astype(np.int64)
    random = np.random.default_rng(0)
    wrong = random.random(len(labels)) < 0.05
    labels[wrong] = (labels[wrong] + random.integers(1, 10, wrong.sum())) % 10
    columns = {
        "id": pa.array(np.arange(len(labels))),
        "label": pa.array(labels),
        "x": pa.FixedSizeListArray.from_arrays(pa.array(pixels.ravel()), 784),
    }
    pq.write_table(pa.table(columns), path)


def visited(page: Path, folder: Path) -> tuple[list[float], str, list[str]]:
    """Seconds of each visit, the id that came first, and what the browser logged."""
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        sys.exit("no chromium and chromedriver here (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = str(programs[0])
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(programs[1])))
    try:
        times = []
        for _ in range(VISITS):
            driver.get("about:blank")
            driver.get(page.as_uri())
            first, milliseconds = driver.execute_script(SORTED)
            times.append(milliseconds / 1000)
        return times, first, [entry["message"] for entry in driver.get_log("browser")]
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
