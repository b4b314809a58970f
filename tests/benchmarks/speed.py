"""Time of an audit's figures against scikit-learn's cross-validation and cleanlab, one after the other.

    pip install '.[benchmarks]'
    python tests/benchmarks/speed.py embeddings mnist

For each dataset, and each of several runs in turn: logistic regression of the same strength on the same
features in 5 folds with cleanlab's `find_label_issues` and quality scores on its probabilities; and fit,
influence (self-influence and leave-one-out of every example) and detection of an audit in this process, for
each solver. Printed are medians and ranges of the seconds and the ratio of the medians; also how far
leave-one-out probabilities are from those of `solver.precision: float64`, the rows that are on one of the two
lists only, and the ranks that are others.
5% of the labels are flipped at random.

The data are ../shared/data/mnist_train_embeddings.parquet (60,000 x 128, standardized) and mnist.npz (60,000
x 784), seen from the project. What is absent is said and left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from detection import L2, SHARED, Arrays, cross_validated, embeddings, flipped, present, write

import influence_batch

STAGES = ("fit", "influence", "detection")


def mnist() -> Arrays:
    with np.load(SHARED / "mnist.npz") as data:
        return data["x_train"].reshape(-1, 784) / 255.0, data["y_train"].astype(np.int64)


DATASETS: dict[str, Callable[[], Arrays]] = {"embeddings": embeddings, "mnist": mnist}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("datasets", nargs="+", choices=sorted(DATASETS))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--solvers", nargs="+", default=["auto", "ekfac"])
    parser.add_argument("--rows", type=int, default=60_000, help="at most so many, the first")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name, (features, labels) in present(options.datasets, DATASETS):
        measure(name, features[: options.rows], labels[: options.rows], options)


def measure(name: str, features: np.ndarray, labels: np.ndarray, options: argparse.Namespace) -> None:
    given = flipped("uniform", 0.05, labels, np.zeros((len(labels), int(labels.max()) + 1)), 0)
    seconds: dict[str, list[float]] = {kind: [] for kind in ("peer", *options.solvers)}
    reports: dict[str, influence_batch.Report] = {}
    sys.stdout.write(f"{name}: {features.shape[0]} x {features.shape[1]}, l2 = {L2:g}\n")
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / "train.parquet", features, given)
        for number in range(options.runs):
            seconds["peer"].append(peer(features, given))
            for kind in options.solvers:
                # A name of its own: a fit would begin at the weights of the last run.
                reports[kind] = audit(path, folder, f"{kind}-{number}", kind, options.settings)
                spent = reports[kind].run["seconds"]
                seconds[kind].append(sum(spent[stage] for stage in STAGES))
        peer_median = float(np.median(seconds["peer"]))
        for kind, found in seconds.items():
            line = f"  {kind:8s} {np.median(found):7.2f} s ({min(found):.2f} to {max(found):.2f})"
            if kind != "peer":
                spent = reports[kind].run["seconds"]
                line += f", {np.median(found) / peer_median:.2f} times; the last "
                line += ", ".join(f"{stage} {spent[stage]:.2f}" for stage in STAGES)
            sys.stdout.write(line + "\n")
        if "auto" in reports:
            exact = audit(path, folder, "float64", "auto", [*options.settings, "solver.precision=float64"])
            for kind, near in reports.items():
                compare(exact, near, kind)


def peer(features: np.ndarray, given: np.ndarray) -> float:
    start = time.perf_counter()
    p = np.clip(cross_validated(features, given, 0), 1e-12, 1.0)
    p /= p.sum(axis=1, keepdims=True)
    find_label_issues(given, p)
    get_label_quality_scores(given, p)
    return time.perf_counter() - start


def audit(path: str, folder: str, name: str, kind: str, settings: list[str]) -> influence_batch.Report:
    config = {
        "name": name,
        "train": {"path": path, "id": "id", "label": "y"},
        "model": {"l2": L2},
        "solver": {"kind": kind},
        "influence": {"test_sample": 2},
        "detection": {"evidence": 0},
        "report": {"page": False},
        "memory_limit": "4GiB",
        "reports": folder,
    }
    return influence_batch.audit(config, overrides=settings)


def compare(exact: influence_batch.Report, near: influence_batch.Report, kind: str) -> None:
    off = np.abs(exact.examples.loo_probability - near.examples.loo_probability)
    missed = len(set(exact.suspects.id) ^ set(near.suspects.id))
    figures = f"{off.mean():.2g} (mean), {off.quantile(0.999):.2g} (999 of 1,000), {off.max():.2g} (most)"
    sys.stdout.write(
        f"  {kind}: leave-one-out probabilities off by {figures} from float64's; "
        f"{missed} rows on one list only, of {len(exact.suspects)}; "
        f"{np.count_nonzero(exact.examples['rank'] != near.examples['rank'])} other ranks\n"
    )


if __name__ == "__main__":
    main()
