"""Features that are zero in every row of train are left out, and nothing of the report shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import influence_batch
from influence_batch.dataset.inspection import Asked, inspect
from influence_batch.dataset.source import open_dataset
from tests.tables import table_of

ROWS, TEST_ROWS, USED, DEAD = 300, 40, [1, 2, 4, 7], [0, 3, 5, 6]
WIDTH = len(USED) + len(DEAD)


def values(rows: int, seed: int, dead: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Features (rows, WIDTH), those of DEAD zero or of that size, and labels."""
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, rows)
    x = np.zeros((rows, WIDTH))
    x[:, USED] = random.standard_normal((rows, len(USED))) + 1.5 * np.eye(3, len(USED))[truth] + 2.0
    x[:, DEAD] = dead * random.standard_normal((rows, len(DEAD)))
    label = np.where(random.random(rows) < 0.1, random.integers(0, 3, rows), truth)
    return x, label


def write(path: Path, x: np.ndarray, label: np.ndarray, lists: bool) -> Path:
    columns: dict[str, Any] = {"id": np.arange(len(x)), "label": label}
    columns |= {"x": list(x)} if lists else {f"x_{j}": column for j, column in enumerate(x.T)}
    pd.DataFrame(columns).to_parquet(path, row_group_size=100)
    return path


def audit(
    folder: Path, name: str, x: np.ndarray, test: np.ndarray | None = None, lists: bool = True, **more: Any
) -> influence_batch.Report:
    features = "x" if lists else "x_*"
    _, label = values(ROWS, 0)
    train = write(folder / f"{name}.parquet", x, label[: len(x)], lists)
    config: dict[str, Any] = {
        "name": name,
        "train": {"path": train, "id": "id", "label": "label", "features": features},
        "shard_rows": 100,
        "reports": folder / "reports",
        **more,
    }
    if test is not None:
        path = write(folder / f"{name}-test.parquet", test, values(TEST_ROWS, 1)[1], lists)
        config["test"] = {"path": path, "id": "id", "label": "label", "features": features}
    config["model"] = {"l2": 1e-2, **more.get("model", {})}
    return influence_batch.audit(config)


def assert_same(one: influence_batch.Report, other: influence_batch.Report) -> None:
    # A residual is rounding; a fingerprint is of all that the files have.
    but = ["residual", "row_fingerprint"]
    for name in ("examples", "suspects", "cross_influence", "test_points"):
        pd.testing.assert_frame_equal(
            table_of(one, name).drop(columns=but, errors="ignore"),
            table_of(other, name).drop(columns=but, errors="ignore"),
            rtol=1e-7,
            atol=1e-10,
            check_dtype=False,
        )


def arrays(report: influence_batch.Report, name: str) -> Mapping[str, np.ndarray]:
    with np.load(report.run_dir / name) as file:
        return {key: file[key] for key in file.files}


HERE: list[dict[str, Any]] = [
    {},
    {"solver": {"kind": "cg", "rtol": 1e-12}},
    {"solver": {"kind": "ekfac", "rtol": 1e-12}},
]
CASES = [(steps, lists, more) for steps in ("raw", "standardize") for lists in (True, False) for more in HERE]


@pytest.mark.parametrize(
    ("steps", "lists", "more"),
    [*CASES, ("standardize", True, {"cluster": {"kind": "local", "workers": 2}})],
    ids=str,
)
def test_nothing_else_changes(steps: str, lists: bool, more: dict[str, Any], tmp_path: Path) -> None:
    """Also where a test point has values in them."""
    x, _ = values(ROWS, 0)
    test, _ = values(TEST_ROWS, 1, dead=1.0)
    found = audit(tmp_path, "dead", x, test, lists, model={"features": steps}, **more)
    # The same without a feature that is left out, by an audit that has none to leave out.
    expected = audit(tmp_path, "used", x[:, USED], test[:, USED], lists, model={"features": steps}, **more)
    assert found.run["model"]["features_left_out"] == len(DEAD)
    assert expected.run["model"]["features_left_out"] == 0
    assert_same(found, expected)
    assert (found.run["train"]["features"], found.run["model"]["features"]) == (WIDTH, WIDTH)
    ours, theirs = arrays(found, "model.npz"), arrays(expected, "model.npz")
    assert ours["coef"].shape == (WIDTH, 3)
    np.testing.assert_allclose(ours["coef"][USED], theirs["coef"], rtol=1e-7)
    np.testing.assert_array_equal(ours["coef"][DEAD], 0.0)
    if steps == "standardize":
        step = arrays(found, "features-0-standardize.npz")
        np.testing.assert_array_equal(step["mean"][DEAD], 0.0)
        np.testing.assert_array_equal(step["scale"][DEAD], 1.0)
        moments = [x[:, USED].mean(axis=0), x[:, USED].std(axis=0)]
        np.testing.assert_allclose([step["mean"][USED], step["scale"][USED]], moments, rtol=1e-10)


def test_shards_that_are_kept_as_the_files_have_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, _ = values(ROWS, 0)
    x = x.astype(np.float32)
    expected = audit(tmp_path, "kept", x)
    plan = influence_batch.audit.__globals__["plan_audit"]

    def compact(prepared: Any) -> Any:
        prepared, made = plan(prepared)
        return prepared, replace(made, compact=True)

    monkeypatch.setitem(influence_batch.audit.__globals__, "plan_audit", compact)
    found = audit(tmp_path, "compact", x)
    assert found.run["model"]["features_left_out"] == len(DEAD)
    assert_same(found, expected)


def test_a_night_in_which_they_have_values(tmp_path: Path) -> None:
    """The weights of the night before are of the other features, those of the night after of fewer."""
    x, _ = values(ROWS, 0)
    with_values, _ = values(ROWS, 0, dead=0.5)
    for night, rows in enumerate([x, with_values, x]):
        found = audit(tmp_path, "nights", rows)
        expected = audit(tmp_path, f"alone-{night}", rows)
        assert (found.run["model"]["begun_at_run"] is None) == (night == 0)
        assert_same(found, expected)


@pytest.mark.parametrize("steps", ["unit_norm", {"kind": "random_fourier", "components": 6}])
def test_steps_that_take_features_together_have_all(steps: Any, tmp_path: Path) -> None:
    """They would make another feature of a test point that has values there."""
    x, _ = values(ROWS, 0)
    report = audit(tmp_path, "together", x, model={"features": steps})
    assert report.run["model"]["features_left_out"] == 0


def test_given_weights_may_be_of_them(tmp_path: Path) -> None:
    x, _ = values(ROWS, 0)
    test, _ = values(TEST_ROWS, 1, dead=1.0)
    fitted = audit(tmp_path, "fitted", x, test)
    weights = {"weights": str(fitted.run_dir / "model.npz")}
    given = audit(tmp_path, "given", x, test, model=weights)
    assert given.run["model"]["features_left_out"] == 0
    np.testing.assert_allclose(given.examples.self_influence, fitted.examples.self_influence, rtol=1e-7)
    np.testing.assert_allclose(given.test_points.loss, fitted.test_points.loss, rtol=1e-7)


def test_advice_on_sizes_names_the_columns_of_the_file(tmp_path: Path) -> None:
    x, _ = values(ROWS, 0)
    x[:, 4] *= 1e5
    for lists, name in ((True, "number 4 of x"), (False, "x_4 ")):
        notes = audit(tmp_path, f"sizes-{lists}", x, lists=lists).run["notes"]
        assert any(f"{name}" in note and "differ in size" in note for note in notes)


def test_features_of_nothing_at_all_are_as_they_were(tmp_path: Path) -> None:
    report = audit(tmp_path, "nothing", np.zeros((ROWS, WIDTH)))
    assert report.run["model"]["features_left_out"] == 0


def test_a_few_rows_that_have_values_are_seen(tmp_path: Path) -> None:
    x, label = values(ROWS, 0)
    x[250, 3] = -1e-300
    dataset = open_dataset(
        "train",
        str(write(tmp_path / "t.parquet", x, label, True)),
        id=None,
        label="label",
        features="x",
        shard_rows=100,
    )
    used = inspect(dataset, asked=Asked(used=True)).used
    assert used is not None
    assert np.flatnonzero(used).tolist() == sorted([*USED, 3])
    assert inspect(dataset).used is None
