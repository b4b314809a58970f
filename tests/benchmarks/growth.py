"""Time against rows, features, classes and test points, drawn as a plot; some five minutes in all.

    pip install '.[plot]'
    python tests/benchmarks/growth.py --out growth.png

From one middle size (20,000 rows, 128 features, 10 classes, 1,000 test points) one of the four grows at a
time: whole audits of made data in this process, evidence and page left out. Printed are, for each size, the
seconds by stage, the least of --runs; and for each of the four the slope of log seconds over log size from
its larger half, for the whole and by stage: 1 is time in proportion, 2 is four times as long for twice the
size. The plot has the same in logarithmic axes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import influence_batch

MIDDLE = {"n": 20_000, "d": 128, "k": 10, "m": 1_000}
SIZES = {
    "n": (5_000, 10_000, 20_000, 40_000, 80_000, 160_000),
    "d": (32, 64, 128, 256, 512),
    "k": (2, 5, 10, 20, 40),
    "m": (250, 500, 1_000, 2_000, 4_000, 8_000),
}
NAMES = {"n": "training examples", "d": "features", "k": "classes", "m": "test points"}
STAGES = ("fit", "influence", "cross_influence", "detection")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--vary", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--most", type=float, default=1.0, help="sizes up to this share of the largest")
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("growth.png"), help="of the plot: png, svg or pdf")
    options = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {}
    sizes = {name: [s for s in SIZES[name] if s <= options.most * SIZES[name][-1]] for name in options.vary}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.vary:
            columns: dict[str, list[float]] = {stage: [] for stage in ("all", *STAGES)}
            for size in sizes[name]:
                runs = [audit({**MIDDLE, name: size}, Path(folder)) for _ in range(options.runs)]
                best = min(runs, key=lambda seconds: sum(seconds.values()))
                columns["all"].append(sum(best.values()))
                for stage in STAGES:
                    columns[stage].append(best[stage])
                stages = ", ".join(f"{stage} {best[stage]:.2f}" for stage in STAGES)
                sys.stdout.write(f"{name} = {size}: {columns['all'][-1]:.2f} s ({stages})\n")
                sys.stdout.flush()
            found[name] = columns
            slopes = {stage: slope(sizes[name], values) for stage, values in columns.items()}
            said = ", ".join(f"{stage} {value:.2f}" for stage, value in slopes.items())
            sys.stdout.write(f"  slope in {name} ({NAMES[name]}): {said}\n")
    draw(sizes, found, options.out)
    sys.stdout.write(f"{options.out}\n")


def audit(sizes: dict[str, int], folder: Path) -> dict[str, float]:
    """Seconds by stage of an audit of such data."""
    n, d, k, m = (sizes[name] for name in "ndkm")
    random = np.random.default_rng([n, d, k, m])
    means = random.standard_normal((k, d)) * (2.5 / np.sqrt(d))
    for part, rows in (("train", n), ("test", m)):
        label = random.integers(0, k, rows)
        values = (means[label] + random.standard_normal((rows, d))).astype(np.float32)
        wrong = random.random(rows) < 0.05
        given = np.where(wrong, (label + random.integers(1, k, rows)) % k, label)
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), d)
        pq.write_table(pa.table({"label": given, "x": column}), folder / f"{part}.parquet")
    with tempfile.TemporaryDirectory(dir=folder) as reports:  # no earlier run to begin at
        config = {
            "train": {"path": f"{folder}/train.parquet", "label": "label", "features": "x"},
            "test": {"path": f"{folder}/test.parquet"},
            "model": {"kind": "softmax", "l2": 1e-3},
            "detection": {"evidence": 0},
            "report": {"page": False},
            "memory_limit": "4GiB",
            "reports": reports,
        }
        seconds: dict[str, float] = influence_batch.audit(config).run["seconds"]
    return seconds


def slope(sizes: list[int], seconds: list[float]) -> float:
    """Of log seconds over log size, by least squares, from the larger half of the sizes."""
    half = len(sizes) // 2 if len(sizes) > 3 else 0
    if len(sizes) - half < 2:
        return float("nan")
    return float(np.polyfit(np.log(sizes[half:]), np.log(seconds[half:]), 1)[0])


def draw(sizes: dict[str, list[int]], found: dict[str, dict[str, list[float]]], out: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.0 * len(found), 4.0), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(found), sharey=True, squeeze=False)[0], found, strict=True):
        for stage, seconds in found[name].items():
            steep = slope(sizes[name], seconds)
            width = 2.5 if stage == "all" else 1.2
            axes.plot(sizes[name], seconds, marker="o", linewidth=width, label=f"{stage} ({steep:.2f})")
        axes.set(xscale="log", yscale="log", xlabel=f"{name}: {NAMES[name]}")
        axes.set_xticks(sizes[name], [f"{size:,}" for size in sizes[name]], fontsize="x-small")
        axes.set_xticks([], minor=True)
        axes.legend(title="stage (slope)", fontsize="small")
    figure.axes[0].set_ylabel("seconds")
    figure.suptitle(
        "Time of an audit; else " + ", ".join(f"{name} = {size}" for name, size in MIDDLE.items())
    )
    figure.savefig(out, dpi=150)


if __name__ == "__main__":
    main()
