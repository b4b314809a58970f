"""Data beyond memory: memory and time of whole audits of made data, through the command line.

    python tests/benchmarks/scale.py --rows 1000 500000 2000000 --memory-limit 1GiB
    python tests/benchmarks/scale.py --rows 200000 --cluster local:1 local:2
    python tests/benchmarks/scale.py --rows 60000 --features 128 --cluster none local:2

Features are float32, 256 unless told: a Gaussian about the mean of each of 10 classes; 2% of the labels are
wrong. For each size and cluster it prints seconds of work by stage, wall time, and the peak of the resident
memory of the command and everything it started, less what the first size of that cluster took (Linux).
Data are written to --folder and made again only where they are missing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from command import run_audit

CLASSES, TEST_POINTS, CHUNK = 10, 1000, 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1000, 500_000, 2_000_000])
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--memory-limit", default="1GiB")
    parser.add_argument("--cluster", nargs="+", default=["none"], help="none, or local:WORKERS")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--folder", type=Path, help="for the data (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for cluster in options.cluster:
            least = None
            for rows in options.rows:
                paths = make(folder, rows, options.features)
                kind, _, workers = cluster.partition(":")
                settings = [f"cluster.kind={kind}", *([f"cluster.workers={workers}"] if workers else [])]
                settings += [f"{part}.path={path}" for part, path in paths.items()]
                settings += [f"memory_limit={options.memory_limit}", *options.settings]
                run = run_audit(write_config(folder), Path(temporary) / "reports", settings)
                least = run.peak if least is None else least
                stages = ", ".join(f"{name} {value:.1f}" for name, value in run.summary["seconds"].items())
                sys.stdout.write(
                    f"{rows} rows, {cluster}: {run.work:.1f} s of work ({stages}), {run.wall:.1f} s in all, "
                    f"peak {run.peak / 2**20:.0f} MiB, {(run.peak - least) / 2**20:.0f} above the first\n"
                )
                sys.stdout.flush()


def write_config(folder: Path) -> Path:
    path = folder / "scale.yaml"
    path.write_text(
        "train: {path: train.parquet, id: id, label: label, features: x}\n"
        "test: {path: test.parquet}\n"
        "model: {kind: softmax, l2: 1.0e-3}\n"
    )
    return path


def make(folder: Path, rows: int, features: int) -> dict[str, Path]:
    """Write both parts where they are missing."""
    paths = {
        "train": folder / f"train-{rows}-{features}.parquet",
        "test": folder / f"test-{features}.parquet",
    }
    means = np.random.default_rng(0).standard_normal((CLASSES, features)) * (2.5 / np.sqrt(features))
    for seed, (path, n) in enumerate(zip(paths.values(), (rows, TEST_POINTS), strict=True), 1):
        if not path.exists():
            write(path, n, means, np.random.default_rng([seed, n]))
    return paths


def write(path: Path, n: int, means: np.ndarray, random: np.random.Generator) -> None:
    width = means.shape[1]
    schema = pa.schema([("id", pa.int64()), ("label", pa.int64()), ("x", pa.list_(pa.float32(), width))])
    temporary = path.with_suffix(".tmp")
    with pq.ParquetWriter(temporary, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, n, CHUNK):
            count = min(CHUNK, n - start)
            truth = random.integers(0, CLASSES, count)
            values = random.standard_normal((count, width), dtype=np.float32)
            values += means[truth].astype(np.float32)
            wrong = random.random(count) < 0.02
            label = np.where(wrong, (truth + random.integers(1, CLASSES, count)) % CLASSES, truth)
            lists = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width)
            ids = np.arange(start, start + count)
            writer.write_table(pa.table([pa.array(ids), pa.array(label), lists], schema=schema))
    temporary.rename(path)


if __name__ == "__main__":
    main()
