"""An audit of a head with a thousand classes: synthetic embeddings with planted errors.

    python tests/benchmarks/many_classes.py
    python tests/benchmarks/many_classes.py --rows 640000 --set model.gradient_tolerance=1e-4 \\
        --set solver.kind=ekfac --set solver.max_iterations=1 --set solver.on_unconverged=flag

Writes the data: rows are spread evenly over the classes, each about a mean of its own with noise of
deviation 1 in every feature, of means that are drawn with deviation `--spread`; 5% of the labels are another
class's, any. Runs the audit in this process, and prints its seconds by stage, the peak memory of the process,
the share of the planted errors that the longest list of 90% precision holds, and precision and recall of the
list that the audit gives.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import influence_batch

ROWS_A_FILE = 64_000
BEGUN = time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_280_000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--spread", type=float, default=0.25)
    parser.add_argument("--noise", type=float, default=0.05)
    parser.add_argument("--memory-limit", default="6GiB")
    parser.add_argument("--folder", help="where data and report go (default: a temporary one)")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        wrong = write(Path(folder) / "train", options)
        report = influence_batch.audit(
            {
                "train": {"path": f"{folder}/train", "id": "id", "label": "label"},
                "memory_limit": options.memory_limit,
                "influence": {"test_sample": 2},
                "detection": {"evidence": 0},
                "report": {"page": False},
            },
            overrides=options.settings,
            reports=folder,
            progress=say,
        )
        examples, run = report.examples.sort_values("rank"), report.run
    found = np.cumsum(wrong[examples.id])
    precision = found / np.arange(1, len(found) + 1)
    deep = int(np.flatnonzero(precision >= 0.9).max(initial=-1)) + 1
    listed = examples.is_suspect.to_numpy()
    right = int(np.count_nonzero(wrong[examples.id[listed]]))
    seconds = ", ".join(f"{stage} {value:.1f}" for stage, value in run["seconds"].items())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    lines = [
        f"{options.rows:,} x {options.features}, {options.classes} classes, {wrong.sum():,} planted errors",
        f"seconds: {seconds}; in all {sum(run['seconds'].values()):.0f}",
        f"peak memory of the process {peak:.2f} GiB",
        f"recall at 90% precision {found[deep - 1] / wrong.sum() if deep else 0.0:.3f} ({deep:,} rows)",
        f"list: {listed.sum():,} rows, precision {right / max(listed.sum(), 1):.3f}, "
        f"recall {right / wrong.sum():.3f}; estimate {run['detection']['estimated_errors']:.0f}",
        f"notes: {run.get('notes')}",
    ]
    sys.stdout.write("\n".join(lines) + "\n")


def say(stage: str, done: int, total: int) -> None:
    """Progress on stderr, a line a stage."""
    if done == 0 or done == total:
        sys.stderr.write(f"{time.perf_counter() - BEGUN:.0f} s, {stage}: {done} of {total}\n")


def write(folder: Path, options: argparse.Namespace) -> np.ndarray:
    """Files of some rows each; which labels are wrong (n,)."""
    folder.mkdir()
    random = np.random.default_rng(0)
    means = options.spread * random.standard_normal((options.classes, options.features), dtype=np.float32)
    wrong = np.zeros(options.rows, dtype=bool)
    for start in range(0, options.rows, ROWS_A_FILE):
        ids = np.arange(start, min(start + ROWS_A_FILE, options.rows))
        labels = random.integers(0, options.classes, len(ids))
        features = means[labels] + random.standard_normal((len(ids), options.features), dtype=np.float32)
        wrong[ids] = random.random(len(ids)) < options.noise
        moved = random.integers(1, options.classes, len(ids))
        given = np.where(wrong[ids], (labels + moved) % options.classes, labels)
        embeddings = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), options.features)
        table = pa.table({"id": ids, "label": given, "embedding": embeddings})
        pq.write_table(table, folder / f"{start:09d}.parquet", compression="none", row_group_size=16_000)
    return wrong


if __name__ == "__main__":
    main()
