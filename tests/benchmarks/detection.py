"""Detection against scikit-learn's cross-validation and cleanlab, on labels that were flipped on purpose.

    pip install '.[benchmarks]'
    python tests/benchmarks/detection.py digits breast_cancer
    python tests/benchmarks/detection.py embeddings fashion fashion_random_fourier --rows 10000 --seeds 2
    python tests/benchmarks/detection.py embeddings --noise border --trusted

For each dataset, kind and rate of noise, and seed: an audit of a Parquet file, and logistic regression of the
same strength on the same features in 5 folds, with cleanlab's quality scores and `find_label_issues` on its
probabilities. Printed are means over the seeds: average precision of the ranking beside that of cleanlab's
best score (the best of five for each seed), F1 of the list beside that of `find_label_issues`, the number of
flipped labels, its estimate with low and high, the length of the list, and the expected calibration error of
p_mislabeled in 15 bins.

Noise: `uniform` flips to any other class; `class` has a rate for each class (half to one and a half times the
mean, at most 45%), half of it to one partner; `border` flips to the nearest other class, as a model of the
right labels in 5 folds sees it, among the fifth of the examples nearest to a border, so at most a fifth
of all. `--trusted` gives the audit 1,000 more rows with their right labels as a trusted test set.

Fashion-MNIST is read from Debian's package dataset-fashion-mnist; embeddings are
../shared/data/mnist_train_embeddings.parquet, seen from the project. What is absent is said and left out.
"""

from __future__ import annotations

import argparse
import gzip
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from cleanlab.filter import find_label_issues
from cleanlab.rank import get_label_quality_scores
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, f1_score
from sklearn.model_selection import StratifiedKFold

import influence_batch

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
FASHION = Path("/usr/share/datasets/fashion-mnist")
RATES = (0.01, 0.05, 0.1, 0.2, 0.4)
L2 = 1e-3
COLUMNS = ("AP", "best", "F1", "issues", "flipped", "estimate", "low", "high", "listed", "ECE", "audit", "CV")
Arrays = tuple[np.ndarray, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("datasets", nargs="+", choices=sorted(DATASETS))
    parser.add_argument("--noise", nargs="+", default=["none", "uniform", "class", "border"])
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--rows", type=int, default=10_000, help="at most so many, drawn at random")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--trusted", action="store_true")
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    sys.stdout.write(f"{'':34s}" + " ".join(f"{name:>8s}" for name in COLUMNS) + "\n")
    for name, (features, labels) in present(options.datasets, DATASETS):
        draws = options.seeds if options.trusted else 1
        problems = [problem(features, labels, seed, options) for seed in range(draws)]
        for kind in options.noise:
            for rate in (0.0,) if kind == "none" else options.rates:
                if kind == "border" and rate > 0.15:
                    continue
                rows = []
                for seed in range(1 if kind == "none" else options.seeds):
                    train, test, clean = problems[seed % draws]
                    rows.append(one(*train, flipped(kind, rate, train[1], clean, seed), test, seed, options))
                means = [float(np.nanmean([row[i] for row in rows])) for i in range(len(COLUMNS))]
                figures = " ".join(f"{v:8.3f}" if abs(v) < 10 else f"{v:8.0f}" for v in means)
                sys.stdout.write(f"{name:24s}{kind:8s}{rate:.0%}".ljust(36) + figures + "\n")
                sys.stdout.flush()


def problem(
    features: np.ndarray, labels: np.ndarray, seed: int, options: argparse.Namespace
) -> tuple[Arrays, Arrays | None, np.ndarray]:
    """Training rows, trusted ones where they are asked for, and class probabilities before any flip.

    Trusted rows are drawn anew for each seed: one draw of 1,000 has 14 to 24 of the model's errors, and all
    that is estimated goes by them.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    held_out = order[len(order) - 1000 :] if options.trusted else order[:0]
    test = (features[held_out], labels[held_out]) if options.trusted else None
    kept = np.sort(order[: min(options.rows, len(order) - len(held_out))])
    train = features[kept], labels[kept]
    return train, test, cross_validated(*train, 0)


def present(
    names: Iterable[str], datasets: Mapping[str, Callable[[], Arrays]]
) -> Iterator[tuple[str, Arrays]]:
    """The datasets whose files are there; of the others it is said that they are left out."""
    for name in names:
        try:
            arrays = datasets[name]()
        except FileNotFoundError as error:
            sys.stdout.write(f"{name}: left out, {error.filename} is absent\n")
        else:
            yield name, arrays


def one(
    features: np.ndarray,
    labels: np.ndarray,
    given: np.ndarray,
    test: Arrays | None,
    seed: int,
    options: argparse.Namespace,
) -> list[float]:
    wrong = given != labels
    start = time.perf_counter()
    p = np.clip(cross_validated(features, given, seed), 1e-12, 1.0)
    p /= p.sum(axis=1, keepdims=True)
    issues = find_label_issues(given, p)
    peer_seconds = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        config: dict[str, Any] = {
            "train": {
                "path": write(Path(folder) / "train.parquet", features, given),
                "id": "id",
                "label": "y",
            },
            "model": {"l2": L2},
            "influence": {"test_sample": 2},
            "detection": {"evidence": 0},
            "memory_limit": "4GiB",
        }
        if test is not None:
            config["test"] = {"path": write(Path(folder) / "test.parquet", *test), "trusted": True}
        report = influence_batch.audit(config, overrides=options.settings, reports=folder)
        examples, detection = report.examples, report.run["detection"]
        seconds = report.run["seconds"]
    suspect = examples.is_suspect.to_numpy()
    some = wrong.any()
    return [
        average_precision_score(wrong, -examples["rank"]) if some else np.nan,
        best_of_cleanlab(given, p, wrong) if some else np.nan,
        f1_score(wrong, suspect) if some else np.nan,
        f1_score(wrong, issues) if some else np.nan,
        float(wrong.sum()),
        detection["estimated_errors"],
        detection["estimated_errors_low"],
        detection["estimated_errors_high"],
        float(suspect.sum()),
        calibration_error(examples.p_mislabeled.to_numpy(), wrong),
        seconds["fit"] + seconds["influence"] + seconds["detection"],
        peer_seconds,
    ]


def write(path: Path, features: np.ndarray, labels: np.ndarray) -> str:
    frame = pd.DataFrame({"id": np.arange(len(labels)), "y": labels, "x": list(features)})
    frame.to_parquet(path)
    return str(path)


def cross_validated(features: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    """Class probabilities (n, k) of models that have not seen the row."""
    p = np.zeros((len(labels), int(labels.max()) + 1))
    for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(features, labels):
        model = LogisticRegression(C=1.0 / (L2 * len(train)), max_iter=500)
        model.fit(features[train], labels[train])
        p[np.ix_(test, model.classes_)] = model.predict_proba(features[test])
    return p


def best_of_cleanlab(given: np.ndarray, p: np.ndarray, wrong: np.ndarray) -> float:
    found = []
    for method in ("self_confidence", "normalized_margin", "confidence_weighted_entropy"):
        for adjust in (False, True):
            if not (adjust and method == "confidence_weighted_entropy"):
                quality = get_label_quality_scores(given, p, method=method, adjust_pred_probs=adjust)
                found.append(average_precision_score(wrong, -quality))
    return float(max(found))


def flipped(kind: str, rate: float, labels: np.ndarray, clean: np.ndarray, seed: int) -> np.ndarray:
    """Labels of which about `rate` are wrong."""
    n, k = clean.shape
    kinds = ("none", "uniform", "class", "border")
    random = np.random.default_rng([seed, round(1000 * rate), kinds.index(kind)])
    given, at = labels.copy(), np.arange(n)
    if kind == "uniform":
        rows = random.choice(n, round(rate * n), replace=False)
        given[rows] = (labels[rows] + random.integers(1, k, len(rows))) % k
    elif kind == "class":
        rates = np.minimum(rate * random.uniform(0.5, 1.5, k), 0.45)
        partner = (np.arange(k) + random.integers(1, k, k)) % k
        for j in range(k):
            members = np.flatnonzero(labels == j)
            rows = random.choice(members, round(rates[j] * len(members)), replace=False)
            other = (j + random.integers(1, k, len(rows))) % k
            given[rows] = np.where(random.random(len(rows)) < 0.5, partner[j], other)
    elif kind == "border":
        others = clean.copy()
        others[at, labels] = -1.0
        nearest = others.argmax(axis=1)
        margin = np.log(np.maximum(clean[at, labels], 1e-12)) - np.log(np.maximum(others[at, nearest], 1e-12))
        zone = np.argsort(np.abs(margin))[: n // 5]
        rows = random.choice(zone, round(rate * n), replace=False)
        given[rows] = nearest[rows]
    return given


def calibration_error(p: np.ndarray, wrong: np.ndarray) -> float:
    bins = np.minimum((15 * p).astype(int), 14)
    return sum(abs(p[bins == i].sum() - wrong[bins == i].sum()) for i in range(15)) / len(p)


def digits() -> Arrays:
    data = load_digits()
    return data.data / 16.0, data.target


def breast_cancer() -> Arrays:
    data = load_breast_cancer()
    return standardized(data.data), data.target


def embeddings() -> Arrays:
    frame = pd.read_parquet(SHARED / "mnist_train_embeddings.parquet")
    return standardized(np.stack(frame.embedding.to_numpy()).astype(np.float64)), frame.label.to_numpy()


def fashion() -> Arrays:
    def read(name: str, header: int) -> np.ndarray:
        packed = FASHION / f"{name}.gz"
        content = gzip.decompress(packed.read_bytes()) if packed.exists() else (FASHION / name).read_bytes()
        return np.frombuffer(content, np.uint8, offset=header)

    images = read("train-images-idx3-ubyte", 16).reshape(-1, 784) / 255.0
    return images, read("train-labels-idx1-ubyte", 8).astype(np.int64)


def fashion_random_fourier() -> Arrays:
    images, labels = fashion()
    random = np.random.default_rng(0)
    gamma = 1.0 / (images.shape[1] * images.var())
    directions = random.standard_normal((images.shape[1], 500)) * np.sqrt(2.0 * gamma)
    waves = np.cos(images @ directions + random.uniform(0.0, 2.0 * np.pi, 500))
    return np.sqrt(2.0 / 500) * waves, labels


def standardized(features: np.ndarray) -> np.ndarray:
    deviation = features.std(axis=0)
    result: np.ndarray = (features - features.mean(axis=0)) / np.where(deviation > 0, deviation, 1.0)
    return result


DATASETS: dict[str, Callable[[], Arrays]] = {
    "digits": digits,
    "breast_cancer": breast_cancer,
    "embeddings": embeddings,
    "fashion": fashion,
    "fashion_random_fourier": fashion_random_fourier,
}


if __name__ == "__main__":
    main()
