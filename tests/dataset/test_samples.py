"""The example datasets: what is in them, and that the planted errors are known exactly."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from flows.cli import main
from influence_batch.dataset.samples import write_sample


def packaged(name: str) -> dict[str, np.ndarray]:
    with np.load(str(files("influence_batch.dataset").joinpath("data", name))) as data:
        return {key: data[key] for key in data.files}


def read(folder: Path) -> dict[str, pd.DataFrame]:
    return {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}


def assert_planted_exactly(tables: dict[str, pd.DataFrame], truth: np.ndarray, share: float) -> None:
    """Rows of train whose label is not the packaged one are those of planted_errors, no more and no less."""
    train, test, planted = tables["train"], tables["test"], tables["planted_errors"]
    assert sorted([*train["id"], *test["id"]]) == list(range(len(truth)))
    assert (test["label"].to_numpy() == truth[test["id"]]).all()
    wrong = train[train["label"].to_numpy() != truth[train["id"]]]
    assert wrong["id"].tolist() == planted["id"].tolist()
    assert wrong["label"].tolist() == planted["given_label"].tolist()
    assert truth[planted["id"]].tolist() == planted["true_label"].tolist()
    assert len(planted) == round(share * len(train))


@pytest.mark.parametrize("seed", [0, 7])
def test_digits(tmp_path: Path, seed: int) -> None:
    written = write_sample("digits", tmp_path, seed=seed)
    assert written == {
        str(tmp_path / "train.parquet"): 1437,
        str(tmp_path / "test.parquet"): 360,
        str(tmp_path / "planted_errors.parquet"): 72,
    }
    data, tables = packaged("digits.npz"), read(tmp_path)
    assert_planted_exactly(tables, data["labels"], 0.05)
    for part in ("train", "test"):
        pixels = tables[part][[f"pixel_{i}" for i in range(64)]].to_numpy()
        np.testing.assert_array_equal(pixels, data["images"][tables[part]["id"]])
    assert set(tables["planted_errors"]["given_label"]) == set(range(10))


def test_breast_cancer(tmp_path: Path) -> None:
    write_sample("breast_cancer", tmp_path)
    data, tables = packaged("breast_cancer.npz"), read(tmp_path)
    assert_planted_exactly(tables, np.where(data["benign"], "benign", "malignant"), 0.05)
    assert (len(tables["train"]), len(tables["test"]), len(tables["planted_errors"])) == (455, 114, 23)
    for part in ("train", "test"):
        measures = tables[part][[str(name) for name in data["names"]]].to_numpy()
        np.testing.assert_array_equal(measures, data["measures"][tables[part]["id"]])


def test_noisy_line(tmp_path: Path) -> None:
    write_sample("noisy_line", tmp_path)
    tables = read(tmp_path)
    train, planted = tables["train"], tables["planted_errors"]
    assert train["x"].tolist() == np.arange(-5, 5, 0.5).tolist()
    line = -5 * train["x"] + 5
    assert train.index[(train["y"] - line).abs() > 1].tolist() == planted["id"].tolist() == [1, 15]
    assert train["y"][[1, 15]].tolist() == planted["given_label"].tolist() == [100.0, 100.0]
    np.testing.assert_allclose(planted["true_label"], line[[1, 15]], atol=0.5)
    assert tables["test"]["y"].tolist() == pytest.approx([-11.0, 21.0, 4.5])


def test_the_seed_decides(tmp_path: Path) -> None:
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        write_sample("digits", tmp_path / folder, seed=seed)
    one, same, other = (read(tmp_path / name)["planted_errors"] for name in "abc")
    assert one.equals(same)
    assert not one.equals(other)


def test_mnist_1_vs_7(tmp_path: Path, mnist_path: Path, mnist: dict[str, np.ndarray]) -> None:
    written = write_sample("mnist_1_vs_7", tmp_path, source=mnist_path)
    assert written == {str(tmp_path / "train.parquet"): 13007, str(tmp_path / "test.parquet"): 2163}
    for part in ("train", "test"):
        table = pq.read_table(tmp_path / f"{part}.parquet")
        labels = mnist[f"y_{part}"]
        rows = np.flatnonzero((labels == 1) | (labels == 7))
        assert table["id"].to_pylist() == list(range(len(rows)))
        assert table["label"].to_numpy().tolist() == labels[rows].tolist()
        pixels = table["image"].combine_chunks().flatten().to_numpy().reshape(-1, 784)
        np.testing.assert_array_equal(pixels, mnist[f"x_{part}"][rows].reshape(-1, 784))


def small_mnist(path: Path, **changes: Any) -> Path:
    arrays = {
        "x_train": np.arange(4 * 784).reshape(4, 28, 28).astype(np.uint8),
        "y_train": np.array([1, 5, 7, 1], np.uint8),
        "x_test": np.ones((2, 28, 28), np.uint8),
        "y_test": np.array([7, 0], np.uint8),
    } | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def test_a_small_mnist(tmp_path: Path) -> None:
    source = small_mnist(tmp_path / "mnist.npz")
    assert list(write_sample("mnist_1_vs_7", tmp_path / "out", source=source).values()) == [3, 1]
    tables = read(tmp_path / "out")
    assert tables["train"]["label"].tolist() == [1, 7, 1]
    assert tables["train"]["image"][1].tolist() == np.arange(2 * 784, 3 * 784).astype(np.uint8).tolist()


class TestCommand:
    def run(self, *arguments: str | Path) -> Result:
        return CliRunner().invoke(main, ["sample", *map(str, arguments)])

    def refusal(self, *arguments: str | Path) -> str:
        result = self.run(*arguments)
        assert result.exit_code == 2
        assert result.stdout == ""
        return result.stderr

    def test_what_it_prints(self, tmp_path: Path) -> None:
        result = self.run("noisy_line", tmp_path)
        assert result.exit_code == 0
        assert result.stdout == (
            f"{tmp_path}/train.parquet: 20 rows\n{tmp_path}/test.parquet: 3 rows\n"
            f"{tmp_path}/planted_errors.parquet: 2 rows\n"
        )

    def test_an_unknown_name(self, tmp_path: Path) -> None:
        assert self.refusal("iris", tmp_path / "out") == (
            "error: sample: no dataset 'iris'; accepted: digits, breast_cancer, noisy_line, mnist_1_vs_7\n"
        )
        assert not (tmp_path / "out").exists()

    def test_a_seed_below_zero(self, tmp_path: Path) -> None:
        assert self.refusal("digits", tmp_path / "out", "--seed", "-1") == (
            "error: sample: --seed is -1; accepted: a whole number, 0 or more\n"
        )

    def test_a_source_that_is_not_needed(self, tmp_path: Path) -> None:
        assert self.refusal("digits", tmp_path / "out", "--source", "mnist.npz") == (
            "error: sample: --source is for mnist_1_vs_7; digits needs none\n"
        )

    def test_no_source(self, tmp_path: Path) -> None:
        assert self.refusal("mnist_1_vs_7", tmp_path / "out") == (
            "error: sample: mnist_1_vs_7 needs --source, the path of a Keras mnist.npz\n"
        )

    EXPECTED = "; expected a Keras mnist.npz with x_train, y_train, x_test and y_test\n"

    def test_sources_that_are_none(self, tmp_path: Path) -> None:
        source = tmp_path / "mnist.npz"

        def message() -> str:
            text = self.refusal("mnist_1_vs_7", tmp_path / "out", "--source", source)
            assert text.startswith(f"error: sample: {source} ")
            return text.removeprefix(f"error: sample: {source} ")

        assert message() == "does not exist" + self.EXPECTED
        source.write_text("x")
        assert message() == ("cannot be used (it is no .npz, or has pickled objects in it)" + self.EXPECTED)
        source.write_bytes(b"")
        assert message() == "cannot be used (No data left in file)" + self.EXPECTED
        with source.open("wb") as stream:
            np.save(stream, np.zeros(3))
        assert message() == "cannot be used (it is one array)" + self.EXPECTED
        small_mnist(source, y_test=None)
        assert message() == "cannot be used (it has no y_test)" + self.EXPECTED
        small_mnist(source, y_test=np.array([{}, {}], dtype=object))
        assert message() == ("cannot be used (it is no .npz, or has pickled objects in it)" + self.EXPECTED)

    def test_arrays_of_another_shape(self, tmp_path: Path) -> None:
        source = small_mnist(tmp_path / "mnist.npz", x_train=np.zeros((3, 28, 28)))
        assert self.refusal("mnist_1_vs_7", tmp_path / "out", "--source", source) == (
            f"error: sample: x_train of {source} has the shape (3, 28, 28) and y_train (4,); "
            "expected (n, 28, 28) or (n, 784), and (n,)\n"
        )
        assert not (tmp_path / "out").exists()

    def test_a_file_in_the_way(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("mine")
        assert self.refusal("noisy_line", tmp_path / "file") == (
            f"error: sample: {tmp_path}/file cannot be written (File exists)\n"
        )
        assert self.refusal("noisy_line", tmp_path / "file" / "out") == (
            f"error: sample: {tmp_path}/file/out cannot be written (Not a directory)\n"
        )
        assert (tmp_path / "file").read_text() == "mine"
