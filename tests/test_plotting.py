"""Figures of a run: files that are what their names say, from the data that the run was made of."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from PIL import Image

import influence_batch
from flows.cli import main
from influence_batch import InputError
from influence_batch.plotting import plot_test_point, save_plots


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> influence_batch.Report:
    folder = tmp_path_factory.mktemp("plots")
    random = np.random.default_rng(0)
    true = random.integers(0, 2, 150)
    x = random.random((150, 4)) + (np.arange(4) % 2 == true[:, None])
    frame = pd.DataFrame({f"p{i}": x[:, i] for i in range(4)})
    frame["id"] = [f"$_{i}{{" for i in range(150)]  # a formula that matplotlib could not read
    frame["label"] = np.where(np.arange(150) < 10, "$^a", "b")
    frame.to_parquet(folder / "train.parquet")
    return influence_batch.audit(
        {
            "train": {"path": str(folder / "train.parquet"), "id": "id", "label": "label", "features": "p*"},
            "model": {"l2": 1e-2},
            "detection": {"budget": 10},
            "report": {"show": {"kind": "image", "shape": [2, 2]}},
        },
        reports=folder / "reports",
    )


def test_figures_are_written(report: influence_batch.Report, tmp_path: Path) -> None:
    paths = save_plots(report, tmp_path / "plots", "png")
    assert [path.stem.split("-")[0] for path in paths] == ["influence", "noise", "test"]
    for path in paths:
        with Image.open(path) as image:
            assert min(image.size) > 300
    before = {path: path.read_bytes() for path in report.run_dir.rglob("*") if path.is_file()}
    for form, start in (("svg", b"<?xml"), ("pdf", b"%PDF")):
        assert save_plots(report, tmp_path, form, examples=1)[0].read_bytes().startswith(start)
    assert {path: path.read_bytes() for path in report.run_dir.rglob("*") if path.is_file()} == before


def test_a_test_point_stands_among_its_most_influential(report: influence_batch.Report) -> None:
    point = report.test_points.id.iloc[3]
    cross = report.cross_influence.query("test_id == @point and direction == 'harmful'").sort_values("rank")
    figure = plot_test_point(report, point, examples=2)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].startswith(f"test point {point}")
    assert titles[1].startswith(f"{cross.train_id.iloc[0]}: ")
    train = pd.read_parquet(report.run["train"]["files"][0]["path"]).set_index("id")
    low, high = 0.0, train.loc[list({t.split(":")[0] for t in titles[1:]})].filter(like="p").to_numpy().max()
    shown = np.asarray(figure.axes[1].images[0].get_array()).ravel()
    expected = (
        (train.loc[cross.train_id.iloc[0]].filter(like="p").to_numpy(dtype=float) - low) / (high - low) * 255
    )
    np.testing.assert_allclose(shown, expected, atol=0.6)


def test_what_cannot_be_drawn_is_told(
    report: influence_batch.Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"no test point 'nobody' in .*; its test points: "):
        save_plots(report, tmp_path / "a", test_id="nobody")
    with pytest.raises(InputError, match="found the format 'gif'; accepted: png, svg, pdf"):
        save_plots(report, tmp_path / "a", "gif")
    path = Path(report.run["train"]["files"][0]["path"])
    kept = path.read_bytes()
    pd.read_parquet(path).iloc[::-1].to_parquet(path)
    with pytest.raises(InputError, match="has other rows than when the run was made"):
        save_plots(report, tmp_path / "a")
    arguments = ["plot", str(report.run_dir), "--out", str(tmp_path / "b")]
    found = CliRunner().invoke(main, [*arguments, "--test", str(report.test_points.id[0])])
    assert (found.exit_code, list(tmp_path.iterdir())) == (2, [])
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 0
    assert found.stdout.split() == [
        str(tmp_path / "b" / f"{kind}.png") for kind in ("influence", "noise-matrix")
    ]
    assert found.stderr.startswith("no figure of a test point: ")
    assert "has other rows than when the run was made" in found.stderr
    path.write_bytes(kept)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"matplotlib is not installed; .* 'influence-batch\[plot\]'"):
        save_plots(report, tmp_path / "a")
    assert not (tmp_path / "a").exists()
