"""run.json: all that is needed to repeat a run, and what it found out about itself."""

from __future__ import annotations

import hashlib
import json
import platform
import re
import resource
import sys
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from influence_batch.dataset import Dataset, Inspection
from influence_batch.dataset.inspection import encode_all
from influence_batch.detection import Reading, least_doubt, power_at
from influence_batch.execution.parts import narrow_blocks
from influence_batch.influence import ApproximationError, TrainInfluence
from influence_batch.models import predict
from influence_batch.redaction import redacted, redacted_all
from influence_batch.stages import Crossed, Data, Explained, Found, Model
from influence_batch.verdicts import Located

FORMAT = 1
# Columns whose sizes differ by more get a note.
_SCALES = 100.0
# The channel of more classes than this would be megabytes of text.
_MOST_LISTED_CLASSES = 100
_SECRET = re.compile("pass|secret|token|credential|key", re.IGNORECASE)
_PACKAGES = ("influence_batch", "numpy", "scipy", "pandas", "pyarrow", "fsspec", "pydantic")


def run_record(
    data: Data,
    model: Model,
    explained: Explained,
    crossed: Crossed,
    found: Found,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Content of run.json, as plain JSON types."""
    config = data.prepared.config
    content = _without_secrets(redacted_all(config.model_dump(mode="json", exclude={"notify"})))
    points = crossed.test_points
    residual = points["residual"]
    n_test = len(residual)
    sampled = data.test is None
    test: dict[str, Any] = {"rows": n_test, "sampled_from_train": sampled}
    if data.test is not None and data.test_inspection is not None:
        test |= _describe(data.test, data.test_inspection)
    return {
        "format": FORMAT,
        "name": config.name,
        "finished": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "config": content,
        "config_fingerprint": _fingerprint(content),
        "versions": _versions(),
        "train": {"rows": data.train.n_rows, **_describe(data.train, data.train_inspection)},
        "test": test,
        "model": {
            "kind": config.model.kind,
            "task": "regression" if data.prepared.regression else "classification",
            "features": model.coefficients.shape[1],
            "features_left_out": model.coefficients.shape[1] + config.model.intercept - model.objective.d,
            "outputs": model.objective.k,
            "parameters": model.objective.p,
            "l2": model.l2,
            "l2_leave_one_out_losses": {f"{l2:g}": _finite(loss) for l2, loss in model.l2_losses.items()},
            "objective": model.fit.value,
            "gradient_norm": model.fit.gradient_norm,
            "gradient_tolerance": config.model.gradient_tolerance,
            "iterations": model.fit.iterations,
            "begun_at_run": model.begun_at,
            "fitted_by": model.fit.method,
            "weights": "model.npz",
            "feature_steps": [
                f"features-{number}-{step.kind}.npz"
                for number, step in enumerate(model.objective.dataset.steps)
            ],
        },
        "solver": {
            "kind": data.plan.choice.kind,
            "reason": data.plan.choice.reason,
            "plan": {
                "dense_bytes": data.plan.choice.dense_bytes,
                "direct_flops": data.plan.choice.direct_flops,
                "cg_flops": data.plan.choice.cg_flops,
            },
            "precision": "float32" if model.objective.single else "float64",
            "rtol": config.solver.rtol,
            "largest_residual": _finite(max(residual.max(), crossed.mean_solve.residual[0])),
            "largest_iterations": int(points["iterations"].max()),
            "unconverged_test_points": int(np.count_nonzero(~points["converged"])),
            "unconverged_leverages": explained.train.unconverged
            + found.reading.refit.get("unconverged_leverages", 0),
            "unconverged_groups": found.groups.unconverged,
            "mean_influence_converged": bool(crossed.mean_solve.converged[0]),
            "detail": crossed.mean_solve.detail,
            "approximation_error": None if explained.error is None else asdict(explained.error),
        },
        "execution": {
            "cluster": config.cluster.kind,
            "slots": data.executor.slots,
            "memory_limit": int(config.memory_limit),
            "kept_in_memory": round(data.plan.kept_share, 4),
            "test_points_a_block": data.plan.block,
            "taken_over": {name: list(parts) for name, parts in data.store.taken_over.items()},
        },
        "detection": _detection(data, found.reading, found.listing.suspect),
        "review": Located.none().review() if data.located is None else data.located.review(),
        "self_check": found.self_check,
        "notes": [
            *_note_on_check(found.self_check),
            *_notes(data, model, explained, crossed, found, n_test),
        ],
        "seconds": {stage: round(value, 4) for stage, value in seconds.items()},
        "peak_memory_bytes": _peak_memory(),
    }


def _describe(dataset: Dataset, inspection: Inspection) -> dict[str, Any]:
    columns = dataset.columns
    files: dict[str, int] = {}
    for ref in dataset.refs:
        files[ref.path] = files.get(ref.path, 0) + ref.rows
    described: dict[str, Any] = {
        "fingerprint": inspection.fingerprint,
        "files": [{"path": redacted(path), "rows": rows} for path, rows in files.items()],
        "shards": dataset.n_shards,
        "id_column": columns.id,
        "label_column": columns.label,
        "feature_columns": list(columns.features),
        "features": dataset.width,
    }
    if dataset.classes is not None:
        codes = encode_all(dataset, inspection.labels)
        counts = np.bincount(codes, minlength=len(dataset.classes))
        described["classes"] = [
            {"label": label, "rows": int(count)} for label, count in zip(dataset.classes, counts, strict=True)
        ]
    return described


def _detection(data: Data, reading: Reading, suspect: np.ndarray) -> dict[str, Any]:
    n_suspects = int(suspect.sum())
    asked = suspect.copy()
    asked[data.settled.wrong] = False
    expected = float(np.asarray(reading.p_mislabeled)[suspect].sum())
    detection: dict[str, Any] = {
        "n_suspects": n_suspects,
        "estimated_errors": reading.estimated_errors,
        "estimated_errors_low": reading.low,
        "estimated_errors_high": reading.high,
        "basis": reading.basis,
        "evidence": reading.evidence,
        "estimated_precision": None if n_suspects == 0 else expected / n_suspects,
        "estimated_recall": None if reading.estimated_errors == 0 else expected / reading.estimated_errors,
        "power": _power(data, reading, asked),
        "refit": dict(reading.refit),
    }
    if data.located is not None:
        detection["verdicts"] = data.located.counts()
    if reading.noise is not None and data.train.classes is not None:
        detection["temperature"] = reading.noise.temperature
        detection["border_noise"] = reading.noise.border
        if len(data.train.classes) <= _MOST_LISTED_CLASSES:
            detection["noise_matrix"] = {
                "classes": list(data.train.classes),
                "given_by_true": reading.noise.matrix.round(6).tolist(),
            }
    if reading.outliers is not None:
        detection["outliers"] = vars(reading.outliers)
    return detection


def _power(data: Data, reading: Reading, suspect: np.ndarray) -> dict[str, Any]:
    """Of errors planted in thought, by kind: how many there were, the share that the list would hold.

    Args:
        suspect: (n,) mask of the rows that are on the list for their doubt.
    """
    config = data.prepared.config.detection
    if config.budget is None and config.target_precision is None:
        cut = least_doubt(reading, config.threshold)
    else:
        cut = float(np.asarray(reading.doubt)[suspect].min(initial=np.inf))
    power = power_at(reading.planted, cut)
    return {kind: {"planted": len(reading.planted[kind]), **vars(found)} for kind, found in power.items()}


def _notes(
    data: Data, model: Model, explained: Explained, crossed: Crossed, found: Found, n_test: int
) -> list[str]:
    """What a reader of the report must know, in sentences."""
    config = data.prepared.config
    notes = [*_notes_on_classes(data, explained), *_note_on_scales(data, model)]
    if config.self_check and model.fit.method == "given":
        notes.append("There was no self-check: the weights were given, so nothing can be refitted.")
    if data.located is not None:
        notes += data.located.notes()
    if data.test is None:
        notes.append(
            f"There is no test set: a sample of {n_test} rows of train (seed {config.seed}) serves as test "
            "points, a row's influence on itself left out."
        )
    if config.test is not None and config.test.trusted and data.prepared.regression:
        notes.append("test.trusted has no effect on a regression.")
    if model.fit.method == "given" and not config.model.require_optimum:
        notes.append(
            f"The weights were given and not checked: their relative gradient norm is "
            f"{model.fit.gradient_norm:.2g}. Influences hold at an optimum, where it is 0."
        )
    if data.plan.choice.kind == "ekfac":
        error = explained.error
        notes.append(
            "Self-influence and leave-one-out predictions are approximations (ekfac): "
            + (
                "how far they are off could not be measured."
                if error is None
                else f"on {error.examples} examples self-influence is off by {error.median:.0%} (median), at "
                f"most {error.largest:.0%}"
                + (
                    "."
                    if error.rows == data.train.n_rows
                    else f", by the Hessian of {error.rows} rows: fewer make it larger."
                )
            )
        )
    elif model.objective.single:
        notes.append(_note_on_single(explained.error))
    elif config.solver.precision == "float32":
        notes.append(
            "Products are of float64, though solver.precision is float32: with this penalty rounding would "
            "show. A larger model.l2 would do."
        )
    unconverged = int(np.count_nonzero(~crossed.test_points["converged"]))
    if unconverged:
        notes.append(
            f"{unconverged} of {n_test} test points missed the solver's tolerance; their influences are "
            "not to be relied on (test_points.converged is false)."
        )
    if explained.train.unconverged:
        notes.append(_note_on_leverages(explained.train))
    if missed := found.reading.refit.get("unconverged_leverages", 0):
        notes.append(
            f"{missed} solves for leverages of the refit missed the solver's tolerance; p_mislabeled is made "
            "of them and not to be relied on."
        )
    if not crossed.mean_solve.converged[0]:
        notes.append("mean_test_influence missed the solver's tolerance and is not to be relied on.")
    if missed := found.groups.unconverged:
        notes.append(
            f"Leaving out {missed} of the groups missed its solver's tolerance; their "
            "mean_test_group_influence has no value."
        )
    return notes


def _note_on_leverages(influence: TrainInfluence) -> str:
    if influence.converged is not None:
        return (
            f"The leverages of {influence.unconverged} of {len(influence.converged[:])} training examples "
            "missed the solver's tolerance; their self-influence and leave-one-out figures are not to be "
            "relied on."
        )
    assert influence.inverse_converged is not None
    return (
        f"{influence.unconverged} of {len(influence.inverse_converged)} columns of the inverse Hessian "
        "missed the solver's tolerance; self-influence and leave-one-out figures of all training examples "
        "are made of it and not to be relied on."
    )


def _note_on_single(error: ApproximationError | None) -> str:
    return "Leverages are made of float32 products" + (
        "."
        if error is None
        else f": on {error.examples} examples self-influence is off by {error.median:.1g} of itself "
        f"(median), at most {error.largest:.1g}."
    )


def _note_on_check(checked: Mapping[str, Any] | None) -> list[str]:
    if checked is None or checked["passed"]:
        return []
    found = checked["correlation"]
    correlation = "no value" if found is None else f"{found:.2f}"
    return [
        f"The self-check failed: the change of the test loss when {checked['examples']} examples were really "
        f"left out and its prediction have a correlation of "
        f"{correlation} and a slope of {checked['slope']:.2f}. "
        "Influences of this run are not to be relied on."
    ]


def _note_on_scales(data: Data, model: Model) -> list[str]:
    """Advice where raw columns differ so much in size that one l2 cannot suit them all."""
    objective = model.objective
    if objective.dataset.steps or model.fit.method == "given":
        return []
    sizes = np.sqrt(np.diag(objective.gram))[: objective.d - data.prepared.config.model.intercept]
    used = np.flatnonzero(sizes > 0)
    if used.size < 2:
        return []
    large, small = used[sizes[used].argmax()], used[sizes[used].argmin()]
    if sizes[large] < _SCALES * sizes[small]:
        return []
    columns = data.train.columns
    names = [
        f"number {i} of {columns.features[0]}" if columns.embedding else columns.features[i]
        for i in objective.dataset.numbers[[large, small]]
    ]
    return [
        f"The columns differ in size: {names[0]} is {sizes[large] / sizes[small]:.3g} times as large as "
        f"{names[1]} (root mean square). One l2 suits no such columns; the feature step standardize does."
    ]


def _notes_on_classes(data: Data, explained: Explained) -> list[str]:
    if data.train.classes is None:
        return []
    given = encode_all(data.train, data.train_inspection.labels)
    counts = np.bincount(given, minlength=len(data.train.classes))
    loo_logits = explained.train.loo_logits
    hits = sum(
        int(np.count_nonzero(predict(data.loss, loo_logits[rows]) == given[rows]))
        for rows in narrow_blocks(len(given), data.loss.outputs)
    )
    right = hits / len(given)
    common = float(counts.max() / len(given))
    notes = []
    # Two standard errors of the share: closer than that they are not told apart.
    if right < common + 2.0 * np.sqrt(common * (1.0 - common) / len(given)):
        notes.append(
            f"The model without an example names its given label in {right:.1%} of cases, and the most "
            f"common label alone would in {common:.1%}: these features and this model say next to "
            "nothing of the labels, and neither does the list."
        )
    alone = [str(data.train.classes[code]) for code in np.flatnonzero(counts == 1)]
    if alone:
        listed = ", ".join(alone[:5]) + (", ..." if len(alone) > 5 else "")
        notes.append(
            f"{len(alone)} {'label has' if len(alone) == 1 else 'labels have'} one example only ({listed}): "
            "nothing can be said of whether it is right, and its p_mislabeled is the mean of all."
        )
    return notes


def _without_secrets(content: dict[str, Any]) -> dict[str, Any]:
    """A config as it can be shown: arguments of a cluster class may have passwords among them."""

    def shown(name: str, value: Any) -> Any:
        if _SECRET.search(name) and not isinstance(value, (bool, type(None))):
            return "(not recorded)"
        if isinstance(value, list):
            return [shown("", item) for item in value]
        return (
            {key: shown(str(key), item) for key, item in value.items()} if isinstance(value, dict) else value
        )

    kwargs = content["cluster"].get("kwargs")
    return (
        content
        if kwargs is None
        else {**content, "cluster": {**content["cluster"], "kwargs": shown("", kwargs)}}
    )


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def _fingerprint(content: Mapping[str, Any]) -> str:
    canonical = json.dumps(content, sort_keys=True, default=str).encode()
    return f"sha256:{hashlib.sha256(canonical).hexdigest()}"


def _finite(value: float) -> float | None:
    """JSON has no infinity: null says that a residual was not finite."""
    return float(value) if np.isfinite(value) else None


def _peak_memory() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
