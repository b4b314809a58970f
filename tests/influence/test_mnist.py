"""The published example and real retraining, on MNIST (from ../shared/data)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import influence_batch
from influence_batch.dataset.samples import write_sample
from influence_batch.execution import InProcessExecutor
from influence_batch.influence import Objective
from influence_batch.models import make_loss
from tests.benchmarks.retraining import measure
from tests.conftest import ArraySource

HARMFUL = [9309, 6463, 11720, 10878, 10648, 7869]
# Test points for the solver that is slow, the one that is asked for among them.
FEW = slice(150, 160)
HELPFUL = [3441, 932, 2799, 3200, 1147, 9394]


@pytest.fixture(scope="module")
def ones_and_sevens(mnist_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mnist_1_vs_7")
    write_sample("mnist_1_vs_7", folder, source=mnist_path)
    pq.write_table(pq.read_table(folder / "test.parquet")[FEW], folder / "few.parquet")
    np.savez(folder / "zeros.npz", coef=np.zeros(784))
    return folder


@pytest.mark.parametrize(
    ("solver", "points", "n"), [("direct", "test", 2163), ("cg", "test", 2163), ("lissa", "few", 10)]
)
def test_seed_figures(ones_and_sevens: Path, solver: str, points: str, n: int) -> None:
    """Test point 157 at zero weights: six most harmful and most helpful of its own label, in order."""
    folder = ones_and_sevens
    report = influence_batch.audit(
        {
            "name": "seed",
            "train": {"path": folder / "train.parquet", "id": "id", "label": "label", "features": "image"},
            "test": {"path": folder / f"{points}.parquet", "id": "id"},
            "model": {
                "kind": "logistic",
                "l2": 0.01,
                "intercept": False,
                "features": "unit_norm",
                "weights": folder / "zeros.npz",
                "require_optimum": False,
            },
            "solver": {"kind": solver},
            "influence": {"top_k": 6, "same_label": True, "estimator": "first_order"},
            "reports": folder / solver,
        }
    )
    found = report.test_points
    assert len(found) == n
    assert found.set_index("id").label[157] == 7
    assert found.converged.all()
    assert (found.residual <= report.run["solver"]["rtol"]).all()
    assert (found.iterations >= 1).all()
    found = report.cross_influence.query("test_id == 157").sort_values("rank")
    assert found.query("direction == 'harmful'").train_id.tolist() == HARMFUL
    assert found.query("direction == 'helpful'").train_id.tolist() == HELPFUL
    assert any("not checked" in note for note in report.run["notes"])


def test_norm_of_the_hessian(mnist: dict[str, np.ndarray]) -> None:
    rows = np.isin(mnist["y_train"], (1, 7))
    images = mnist["x_train"][rows].astype(np.float64)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    source = ArraySource(images, (mnist["y_train"][rows] == 7).astype(np.int64), 1000)
    objective = Objective(source, InProcessExecutor(2**30), make_loss("logistic", 2), np.full(784, 0.01))
    blocks = objective.hessian(np.zeros((1, 784))).dense_blocks()
    assert float(np.linalg.norm(blocks)) == pytest.approx(0.31225, abs=5e-6)


def test_leave_one_out_influence_is_what_retraining_shows(mnist: dict[str, np.ndarray]) -> None:
    found = measure(mnist, n_train=5000, n_test=500, n_left_out=25)
    assert found["leave_one_out"].correlation >= 0.995
    assert abs(found["leave_one_out"].slope - 1.0) <= 0.05
    # What every first-order estimate shows; here so that a change of the correction is seen.
    assert found["first_order"].correlation == pytest.approx(0.987, abs=0.01)
    assert found["first_order"].slope == pytest.approx(1.47, abs=0.1)
