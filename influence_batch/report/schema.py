"""The columns of every table of a run: the one place that names and explains them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

# Types that follow the user's own columns.
ID, LABEL, IDS = "id", "label", "ids"


@dataclass(frozen=True)
class Column:
    """A column: name, Arrow type (or `id`, `label`, `ids` for the user's own), meaning."""

    name: str
    type: pa.DataType | str
    meaning: str


_F, _I, _B, _S = pa.float64(), pa.int64(), pa.bool_(), pa.string()
_FS = pa.list_(pa.float64())

_EXAMPLES = (
    Column(
        "id", ID, "the example's id in train; its row number, from 0, where the config names no id column"
    ),
    Column("given_label", LABEL, "the label as the data have it"),
    Column(
        "suggested_label",
        LABEL,
        "the most probable other label where the given one is in doubt (suspects, and p_mislabeled of 0.5 "
        "and more), else the given label; for regression the prediction of a model fitted without the "
        "suspects and without the example",
    ),
    Column(
        "suggested_probability",
        _F,
        "probability that the most probable other label is the true one (null for regression)",
    ),
    Column("predicted_label", LABEL, "prediction of the model trained on all of train"),
    Column("loss", _F, "loss of the given label under the model trained on all of train"),
    Column(
        "self_influence",
        _F,
        "(1/n) g' H^-1 g: by how much, to first order, the example's own loss rises when it is left out; "
        "never negative, large for examples that the model fits only because it saw them",
    ),
    Column(
        "mean_test_influence",
        _F,
        "mean over the test points of the first-order rise of their loss when the example is left out: "
        "positive is helpful, negative harmful",
    ),
    Column(
        "mean_test_leave_one_out_influence",
        _F,
        "the same with the leverage correction, so that the number is near to what retraining would show",
    ),
    Column(
        "loo_probability",
        _F,
        "probability of the given label under the model without the example, at the temperature that fits "
        "the labels best (run.json: detection.temperature); for regression the two-sided tail "
        "probability of its left-out residual",
    ),
    Column("loo_predicted_label", LABEL, "prediction of the model without the example"),
    Column(
        "p_mislabeled",
        _F,
        "probability that the given label is wrong, as a model fitted without the suspects sees it; 1 where "
        "a reviewer found it wrong, 0 where it was found right or was corrected",
    ),
    Column("rank", _I, "1 for the most suspect example of train"),
    Column(
        "is_suspect",
        _B,
        "whether the example is on the list (detection.threshold or detection.budget); labels that a "
        "reviewer found right, or corrected, never are, labels found wrong without a correction always",
    ),
    Column(
        "row_fingerprint",
        pa.uint64(),
        "hash of the example's features and label: equal for equal content, whatever file it stands in",
    ),
    Column(
        "verdict",
        _S,
        "what a reviewer said of the row as it is: mislabeled, correct or ambiguous; null where nobody did",
    ),
    Column(
        "corrected_label",
        LABEL,
        "the label that a reviewer gave in the place of a wrong one, null where there is none: the row is in "
        "the fit with this label, and loss, influences and p_mislabeled are of this one",
    ),
)

_EVIDENCE = (
    Column(
        "reason", _S, "what speaks against the label, in words; null beyond the first detection.evidence rows"
    ),
    Column(
        "nearest_given_ids",
        IDS,
        "the nearest examples with the same label, the nearest first; of equals, train's first",
    ),
    Column("nearest_given_distances", _FS, "their Euclidean distances, in the model's features"),
    Column("nearest_suggested_ids", IDS, "the nearest examples with the suggested label, the nearest first"),
    Column("nearest_suggested_distances", _FS, "their distances"),
    Column(
        "duplicate_id",
        ID,
        "an example with another label and the same features, or nearly so (a twentieth of what a nearest "
        "neighbour's distance commonly is); null where there is none",
    ),
    Column("duplicate_label", LABEL, "its label, corrected where a reviewer did"),
    Column("duplicate_distance", _F, "its distance; 0 for the same features"),
    Column(
        "is_outlier",
        _B,
        "whether it is far from every class (three times as far from the nearest class mean as 99 of 100 "
        "examples, Mahalanobis distance): then suggested_label is null",
    ),
    Column(
        "harmed_influence",
        _F,
        "sum of the leave-one-out influences on all test points that it harms, never positive",
    ),
    Column("harmed_test_ids", IDS, "the test points that it harms most, the most harmed first"),
    Column("harmed_test_influences", _FS, "the leave-one-out influences on them"),
    Column(
        "label_error_rate", _F, "estimated share of wrong labels among all examples with this given label"
    ),
)

_SEEN = (
    Column("first_seen", _S, "run_id of the first run that listed it"),
    Column("nights_seen", _I, "how many runs have listed it"),
)

_HISTORY = (
    Column(
        "state",
        _S,
        "new (no earlier run listed it), persisting (the last one did) or reopened (an earlier one did, the "
        "last one did not); a row is known by its id, by its content where there is no id column",
    ),
    *_SEEN,
    Column(
        "rank_change",
        _I,
        "its rank in the last run that listed it, minus its rank now: positive is up; null if it is new",
    ),
)

_LAST_SEEN = Column("last_seen", _S, "run_id of the last run that listed it")

TABLES: Mapping[str, tuple[Column, ...]] = {
    "examples": _EXAMPLES,
    "suspects": (*_EXAMPLES, *_EVIDENCE, *_HISTORY),
    "resolved": (
        Column("id", ID, "the id of an example that the last run listed and this one does not"),
        Column("given_label", LABEL, "its label then"),
        Column("suggested_label", LABEL, "the label that was suggested then"),
        Column("p_mislabeled", _F, "its p_mislabeled then"),
        Column("rank", _I, "its rank then"),
        *_SEEN,
        _LAST_SEEN,
        Column(
            "resolution",
            _S,
            "why it is not listed now: removed (train has it no longer), label_changed, features_changed, "
            "reviewed (a verdict keeps it off the list) or no_longer_suspect; without an id column a row "
            "with another label or other features is another row, and this one was removed",
        ),
    ),
    "once_listed": (
        Column("id", ID, "the id, when it was last listed, of an example that only earlier runs listed"),
        Column("given_label", LABEL, "its label then"),
        Column("rank", _I, "its rank then"),
        Column("row_fingerprint", pa.uint64(), "its row_fingerprint then"),
        *_SEEN,
        _LAST_SEEN,
    ),
    "earlier_runs": (
        Column("earlier_run_id", _S, "an earlier run of the audit, the oldest first, removed ones too"),
        Column("started", pa.timestamp("us", tz="UTC"), "when it was started"),
        Column("n_train", _I, "its rows of train; this and what follows as `load_history` has them"),
        Column("n_suspects", _I, "rows on its list"),
        Column("estimated_errors", _F, "its estimate of wrong labels"),
        Column("estimated_errors_low", _F, "lower end of the range"),
        Column("estimated_errors_high", _F, "upper end of it"),
        Column("error_rate", _F, "estimated_errors as a share of n_train"),
        Column("new", _I, "suspects that were new then"),
        Column("persisting", _I, "suspects that the run before it had listed too"),
        Column("reopened", _I, "suspects that only an earlier one had listed"),
        Column("resolved", _I, "rows of the list before it that it did not list"),
        Column("reviewed", _I, "rows with a verdict then"),
        Column("measured_precision", _F, "share of listed labels that verdicts found wrong"),
    ),
    "classes": (
        Column("label", LABEL, "a given label"),
        Column("rows", _I, "examples with that label"),
        Column("suspects", _I, "of them on the list"),
        Column(
            "estimated_errors", _F, "expected number of them that are labelled wrong: the sum of p_mislabeled"
        ),
        Column(
            "estimated_errors_low", _F, "lower end of its range, as detection.estimated_errors_low is one"
        ),
        Column("estimated_errors_high", _F, "upper end of it"),
        Column("error_rate", _F, "their share"),
    ),
    "noise_matrix": (
        Column("true_label", LABEL, "a class"),
        Column("given_label", LABEL, "another label"),
        Column(
            "estimated_errors",
            _F,
            "expected number of examples of that class that were given that label; all together they are "
            "detection.estimated_errors",
        ),
    ),
    "depths": (
        Column("depth", _I, "a list of so many rows from the top: 10, 20, 50, 100, ..., the list's, and all"),
        Column("p_mislabeled", _F, "p_mislabeled of its last row"),
        Column("estimated_precision", _F, "share of it that is wrong: the mean of its p_mislabeled"),
        Column("estimated_recall", _F, "its errors as a share of detection.estimated_errors"),
        Column(
            "power_random",
            _F,
            "share of errors planted in thought that it would hold: any other label (for regression another "
            "row's target) in the place of one that is likely right",
        ),
        Column("power_random_low", _F, "lower end of its 95% interval"),
        Column("power_random_high", _F, "upper end of it"),
        Column(
            "power_nearest",
            _F,
            "the same for errors that are hard to find: the label of the most probable other class; null for "
            "regression",
        ),
        Column("power_nearest_low", _F, "lower end of its 95% interval"),
        Column("power_nearest_high", _F, "upper end of it"),
        Column("is_list", _B, "whether this is the depth of the list"),
    ),
    "groups": (
        Column("group_by", _S, "the column that the rows are grouped by"),
        Column("value", _S, "its value, null for rows without one; groups of a column by error_rate"),
        Column("rows", _I, "examples of the group"),
        Column("suspects", _I, "of them on the list"),
        Column(
            "estimated_errors",
            _F,
            "expected number of wrong labels among them, with an error rate of the group's own; p_mislabeled "
            "knows one rate for all",
        ),
        Column("estimated_errors_low", _F, "lower end of its 95% interval"),
        Column("estimated_errors_high", _F, "upper end of it"),
        Column("error_rate", _F, "their share"),
        Column("times_overall", _F, "error_rate over that of all examples"),
        Column(
            "mean_test_influence",
            _F,
            "first-order rise of the mean test loss when the whole group is left out: the sum of its "
            "members'; negative means that the group harms",
        ),
        Column(
            "mean_test_group_influence",
            _F,
            "the same with the curvature of the rows that stay, which holds for large groups too; null "
            "beyond the 50 largest groups of a column, for a group of all rows, and where the solve missed "
            "its tolerance (run.json: unconverged_groups)",
        ),
    ),
    "cross_influence": (
        Column("test_id", ID, "id of the test point"),
        Column("train_id", ID, "id of the training example"),
        Column(
            "influence",
            _F,
            "(1/n) g_t' H^-1 g_i: by how much, to first order, the test point's loss rises when the training "
            "example is left out; positive is helpful, negative harmful",
        ),
        Column("leave_one_out_influence", _F, "the same with the leverage correction"),
        Column("direction", _S, "harmful (leaving the example out lowers the loss) or helpful"),
        Column("rank", _I, "1 for the strongest of its test point and direction"),
    ),
    "test_points": (
        Column("id", ID, "the test point's id"),
        Column("label", LABEL, "its label as the data have it"),
        Column("predicted_label", LABEL, "prediction of the model trained on all of train"),
        Column(
            "loss",
            _F,
            "loss of the label (of train's rows the corrected one, where there is one) under that model",
        ),
        Column("iterations", _I, "passes the solver made for this point's inverse-Hessian-vector product"),
        Column("residual", _F, "true |b - Hx| / |b| of that solve"),
        Column(
            "converged",
            _B,
            "whether the residual is within solver.rtol; influences are wrong where it is not",
        ),
    ),
}


# The files of reviewers' verdicts, beside the runs.
VERDICTS = (
    Column("id", ID, "the example's id; without an id column its row number in the run it was judged in"),
    Column("verdict", _S, "mislabeled, correct or ambiguous"),
    Column("given_label", LABEL, "the label that was judged"),
    Column("corrected_label", LABEL, "the right label, where the reviewer knows it (mislabeled only)"),
    Column(
        "row_fingerprint", pa.uint64(), "the row_fingerprint of what was judged; null: whatever its features"
    ),
    Column("reviewer", _S, "who"),
    Column("time", pa.timestamp("us", tz="UTC"), "when; the time of the import where the file did not say"),
    Column("note", _S, "anything"),
    Column("run_id", _S, "the run whose list was looked at; null where the file did not say"),
)


def verdict_schema(id_type: pa.DataType, label_type: pa.DataType) -> pa.Schema:
    """Arrow schema of a file of verdicts."""
    return _schema(VERDICTS, id_type, label_type)


def table_schema(name: str, id_type: pa.DataType, label_type: pa.DataType) -> pa.Schema:
    """Arrow schema of a table, with each column's meaning as `description` in its metadata."""
    return _schema(TABLES[name], id_type, label_type)


def _schema(columns: Sequence[Column], id_type: pa.DataType, label_type: pa.DataType) -> pa.Schema:
    own = {ID: id_type, LABEL: label_type, IDS: pa.list_(id_type)}
    return pa.schema(
        [
            pa.field(
                column.name,
                own[column.type] if isinstance(column.type, str) else column.type,
                metadata={"description": column.meaning},
            )
            for column in columns
        ]
    )


def describe_tables() -> dict[str, list[dict[str, str]]]:
    """Name, type and meaning of every column of every table, as plain data."""
    own = {ID: "as the id column", LABEL: "as the label column", IDS: "list of ids"}
    return {
        name: [
            {
                "name": column.name,
                "type": own[column.type] if isinstance(column.type, str) else str(column.type),
                "meaning": column.meaning,
            }
            for column in columns
        ]
        for name, columns in TABLES.items()
    }
