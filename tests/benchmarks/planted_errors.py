"""How many planted errors the list finds, on datasets that the package can write by itself.

    python tests/benchmarks/planted_errors.py

Digits and breast cancer with 5% of the labels flipped uniformly, audited as the shipped configs say,
for several seeds of the planted errors; `--set` overrides the configs. Prints rows listed, planted
errors among them, F1 and the estimated number of errors.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import pandas as pd

import influence_batch
from influence_batch.dataset.samples import write_sample

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", choices=("digits", "breast_cancer"))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    for name in [options.only] if options.only else ["digits", "breast_cancer"]:
        for seed in range(options.seeds):
            sys.stdout.write(f"{name}, seed {seed}: {one(name, seed, options.set)}\n")


def one(name: str, seed: int, overrides: list[str]) -> str:
    with tempfile.TemporaryDirectory() as folder:
        write_sample(name, Path(folder), seed=seed)
        planted = set(pd.read_parquet(Path(folder) / "planted_errors.parquet").id)
        paths = [f"{part}.path={folder}/{part}.parquet" for part in ("train", "test")]
        report = influence_batch.audit(
            CONFIGS / f"{name}.yaml", overrides=[*paths, *overrides], reports=folder
        )
        listed = set(report.suspects.id)
        found = len(listed & planted)
        f1 = 2 * found / (len(listed) + len(planted))
        detection = report.run["detection"]
        return (
            f"{len(listed)} listed, {found} of {len(planted)} planted among them, F1 {f1:.2f}, estimated "
            f"{detection['estimated_errors']:.1f} ({detection['estimated_errors_low']:.1f} to "
            f"{detection['estimated_errors_high']:.1f})"
        )


if __name__ == "__main__":
    main()
