"""`l2: auto` against real leave-one-out retraining."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression

import influence_batch
from influence_batch import InputError


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Few rows, many columns: too little l2 fits noise, too much fits nothing."""
    random = np.random.default_rng(3)
    x = random.standard_normal((90, 15))
    y = (x[:, :2] @ [1.5, -1.0] + 0.8 * random.standard_normal(90) > 0).astype(int)
    path = tmp_path_factory.mktemp("l2") / "train.parquet"
    pd.DataFrame({"label": y, "x": list(x)}).to_parquet(path)
    return path


def _retrained_loss(frame: pd.DataFrame, l2: float) -> float:
    x, y = np.stack(frame.x.to_numpy()), frame.label.to_numpy()
    losses = []
    for i in range(len(y)):
        kept = np.arange(len(y)) != i
        # J has (1/n) of all rows while one is left out; the penalty of n - 1 rows is the same l2.
        model = LogisticRegression(C=1.0 / (l2 * kept.sum()), tol=1e-8, max_iter=2000).fit(x[kept], y[kept])
        losses.append(-np.log(model.predict_proba(x[[i]])[0, y[i]]))
    return float(np.mean(losses))


@pytest.mark.parametrize(
    ("kind", "solver"), [("logistic", "direct"), ("logistic", "cg"), ("softmax", "direct")]
)
def test_the_least_loss_is_chosen(train: Path, tmp_path: Path, kind: str, solver: str) -> None:
    report = influence_batch.audit(
        {
            "train": {"path": str(train), "label": "label"},
            "model": {"l2": "auto", "kind": kind},
            "solver": {"kind": solver},
        },
        reports=tmp_path,
    )
    model = report.run["model"]
    losses = {float(l2): loss for l2, loss in model["l2_leave_one_out_losses"].items()}
    assert model["l2"] == min(losses, key=lambda l2: losses[l2])
    # Its neighbours on the grid were tried, so it is a valley.
    assert {round(np.log10(l2)) for l2 in losses} >= {round(np.log10(model["l2"])) + step for step in (-1, 1)}
    if kind == "logistic":
        frame = pd.read_parquet(train)
        retrained = {l2: _retrained_loss(frame, l2) for l2 in losses}
        assert min(retrained, key=lambda l2: retrained[l2]) == model["l2"]
        assert losses[model["l2"]] == pytest.approx(retrained[model["l2"]], rel=0.02)


def test_the_audit_is_that_of_the_chosen_l2(train: Path, tmp_path: Path) -> None:
    config = {"train": {"path": str(train), "label": "label"}}
    auto = influence_batch.audit(config, overrides=["model.l2=auto"], reports=tmp_path)
    fixed = influence_batch.audit(config, overrides=[f"model.l2={auto.run['model']['l2']}"], reports=tmp_path)
    pd.testing.assert_frame_equal(auto.examples, fixed.examples, rtol=1e-8, atol=1e-11)


def test_given_weights_have_an_l2(train: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="weights with the l2 that they were fitted with"):
        influence_batch.audit(
            {"train": {"path": str(train), "label": "label"}, "model": {"l2": "auto", "weights": "w.npz"}},
            reports=tmp_path,
        )


def test_rare_features_do_not_hide_the_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example whose feature no other of the sample has is in the Hessian that its leverage comes from."""
    random = np.random.default_rng(0)
    n = 1_000
    x = np.concatenate([random.standard_normal((n, 4)), np.zeros((n, 6))], axis=1)
    x[random.choice(n, 6, replace=False), np.arange(4, 10)] = 1.0
    y = (x[:, :4] @ [1.5, -1.0, 0.5, 0.0] + random.gumbel(size=n) > 0).astype(int)
    pd.DataFrame({"label": y, "x": list(x)}).to_parquet(tmp_path / "train.parquet")
    losses = {}
    for least in (100, 10**6):  # with a sample, and without
        # The package's own name `fit` is the function.
        monkeypatch.setattr(importlib.import_module("influence_batch.influence.fit"), "_LEAST_SAMPLE", least)
        report = influence_batch.audit(
            {
                "name": str(least),
                "train": {"path": tmp_path / "train.parquet", "label": "label"},
                "model": {"kind": "softmax", "l2": "auto", "features": "standardize"},
                "reports": tmp_path,
            }
        )
        losses[least] = report.run["model"]["l2_leave_one_out_losses"]
    assert all(loss is not None for loss in losses[100].values())
    assert losses[100]["0.001"] == pytest.approx(losses[10**6]["0.001"], rel=0.1)
