"""Two runs side by side: two nights, or two models on the same data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from influence_batch.errors import InputError
from influence_batch.report.reader import Report, load_report
from influence_batch.storage import Place

_EXAMPLES = ("id", "row_fingerprint", "rank", "p_mislabeled", "is_suspect")
_LEAST_FOR_CORRELATION = 3


@dataclass(frozen=True)
class Comparison:
    """What two runs, a and b, have in common.

    Attributes:
        summary: counts and correlations, as `influence-batch compare --json` prints them, beside the rows of
            `test_points`.
        suspects: a row for each example that either run listed: its id in a run that has it, `on` (`both`,
            `a` or `b`), and rank and p_mislabeled in each, missing where that run does not have the row.
        test_points: a row for each test point and direction of both (none where neither examples have ids
            nor test sets are equal): `test_id`, `direction`, how many
            training examples each run names (`n_a`, `n_b`), how many of them are the same (`common`), and
            their share of all that are named (`jaccard`).
    """

    summary: dict[str, Any]
    suspects: pd.DataFrame
    test_points: pd.DataFrame


def compare(run_a: str | Place, run_b: str | Place) -> Comparison:
    """Compare two runs by the ids of their examples or, where one has none, by content.

    Raises:
        InputError: a folder is no run, or the runs have no example in common.
    """
    a, b = load_report(run_a), load_report(run_b)
    columns = [report.run["train"].get("id_column") for report in (a, b)]
    key = "id" if None not in columns else "row_fingerprint"
    examples = [_examples(report, key) for report in (a, b)]
    both = examples[0].merge(examples[1], on="key", suffixes=("_a", "_b"))
    if both.empty:
        raise InputError(
            f"compare: {a.run_dir} and {b.run_dir} have no training example in common (compared by {key}); "
            "expected two runs on the same data, or most of them"
        )
    suspects = _suspects(*examples)
    on = suspects["on"].value_counts()
    listed = {name: int(on.get(name, 0)) for name in ("both", "a", "b")}
    points = _test_points(a, b, examples)
    if key == "row_fingerprint" and a.run["test"].get("fingerprint") != b.run["test"].get("fingerprint"):
        points = points[:0]  # test points are known by row numbers, of other rows
    summary = {
        "run_a": str(a.run_dir),
        "run_b": str(b.run_dir),
        "compared_by": key,
        "examples": {
            "both": len(both),
            "only_a": len(examples[0]) - len(both),
            "only_b": len(examples[1]) - len(both),
        },
        "suspects": {
            "both": listed["both"],
            "only_a": listed["a"],
            "only_b": listed["b"],
            "jaccard": _share(listed["both"], len(suspects)),
        },
        "rank_correlation": _correlation(both["rank_a"], both["rank_b"]),
        "rank_correlation_of_suspects": _correlation(
            *(suspects.dropna(subset=["rank_a", "rank_b"])[name] for name in ("rank_a", "rank_b"))
        ),
        "test_points": {
            "both": int(points["test_id"].nunique()),
            **{
                f"mean_jaccard_{direction}": _mean(points.loc[points["direction"] == direction, "jaccard"])
                for direction in ("harmful", "helpful")
            },
        },
    }
    return Comparison(summary, suspects.drop(columns="key"), points)


def _examples(report: Report, key: str) -> pd.DataFrame:
    """The examples of a run by their key; of rows of the same content the first, second, ... are a pair."""
    frame = report.columns("examples", _EXAMPLES)
    if key == "id":
        return frame.assign(key=frame["id"].astype(object))
    number = frame.groupby("row_fingerprint").cumcount()
    return frame.assign(key=frame["row_fingerprint"].astype(str) + "-" + number.astype(str))


def _suspects(a: pd.DataFrame, b: pd.DataFrame) -> pd.DataFrame:
    keys = set(a.loc[a["is_suspect"], "key"]) | set(b.loc[b["is_suspect"], "key"])
    found = a[a["key"].isin(keys)].merge(
        b[b["key"].isin(keys)], on="key", how="outer", suffixes=("_a", "_b"), sort=False
    )
    on_a, on_b = (found[f"is_suspect_{run}"].eq(True) for run in ("a", "b"))
    on = np.select([on_a & on_b, on_a], ["both", "a"], "b")
    found = found.assign(id=_ids_of(found["key"], a, b), on=on)
    best = found[["rank_a", "rank_b"]].min(axis=1)
    kept = ["key", "id", "on", "rank_a", "rank_b", "p_mislabeled_a", "p_mislabeled_b"]
    return found.assign(best=best).sort_values("best", kind="stable")[kept].reset_index(drop=True)


def _ids_of(keys: pd.Series, a: pd.DataFrame, b: pd.DataFrame) -> Any:
    """The ids by their keys, of a run that has them, in the ids' own type.

    An outer merge makes floats of integers where rows are missing: above 2^53 those are other ids.
    """
    ids = [frame.set_index("key")["id"] for frame in (a, b)]
    if ids[0].dtype != ids[1].dtype:
        ids = [of_run.astype(object) for of_run in ids]
    either = pd.concat(ids)
    return either[~either.index.duplicated()].loc[keys].array


def _test_points(a: Report, b: Report, examples: list[pd.DataFrame]) -> pd.DataFrame:
    named = []
    for report, known in zip((a, b), examples, strict=True):
        frame = report.columns("cross_influence", ("test_id", "train_id", "direction"))
        key_of = dict(zip(known["id"], known["key"], strict=True))
        frame = frame.assign(key=frame["train_id"].map(key_of), test_id=frame["test_id"].astype(object))
        named.append(frame[["test_id", "direction", "key"]])
    point = ["test_id", "direction"]
    counts = [frame.groupby(point, sort=False).size() for frame in named]
    common = named[0].merge(named[1], on=[*point, "key"]).groupby(point, sort=False).size()
    found = pd.concat([counts[0].rename("n_a"), counts[1].rename("n_b")], axis=1, join="inner")
    found["common"] = common.reindex(found.index, fill_value=0)
    found["jaccard"] = found["common"] / (found["n_a"] + found["n_b"] - found["common"])
    return found.reset_index().astype({"n_a": "int64", "n_b": "int64", "common": "int64"})


def _correlation(a: pd.Series, b: pd.Series) -> float | None:
    """Spearman's, None where there are too few or all are the same."""
    if len(a) < _LEAST_FOR_CORRELATION or a.nunique() < 2 or b.nunique() < 2:
        return None
    from scipy.stats import spearmanr  # only here: it takes long to import

    return float(spearmanr(a, b).statistic)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean(values: pd.Series) -> float | None:
    return float(values.mean()) if len(values) else None
