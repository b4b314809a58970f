"""Example datasets that the package can write by itself, with errors planted in known rows."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from influence_batch.dataset.arrays import read_npz
from influence_batch.errors import InputError

# Share of the training labels that are made wrong.
_PLANTED = 0.05


def write_sample(name: str, folder: Path, *, source: Path | None = None, seed: int = 0) -> dict[str, int]:
    """Write train.parquet, test.parquet and, where errors are planted, planted_errors.parquet.

    Args:
        name: `digits`, `breast_cancer`, `noisy_line` or `mnist_1_vs_7`.
        folder: made if it is not there; files of these names in it are replaced.
        source: Keras's mnist.npz, for `mnist_1_vs_7`.
        seed: of noise and of planted errors.

    Returns:
        Rows of each file, by path.

    Raises:
        InputError: an unknown name, a source that is missing or not what it should be, a folder
            that cannot be written.
    """
    makers: dict[str, Callable[[], dict[str, pa.Table]]] = {
        "digits": lambda: _digits(seed),
        "breast_cancer": lambda: _breast_cancer(seed),
        "noisy_line": lambda: _noisy_line(seed),
        "mnist_1_vs_7": lambda: _mnist_1_vs_7(source),
    }
    if name not in makers:
        raise InputError(f"sample: no dataset {name!r}; accepted: {', '.join(makers)}")
    if source is not None and name != "mnist_1_vs_7":
        raise InputError(f"sample: --source is for mnist_1_vs_7; {name} needs none")
    if seed < 0:
        raise InputError(f"sample: --seed is {seed}; accepted: a whole number, 0 or more")
    tables = makers[name]()
    written = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for table_name, table in tables.items():
            path = folder / f"{table_name}.parquet"
            pq.write_table(table, path, compression="zstd")
            written[str(path)] = table.num_rows
    except OSError as error:
        raise InputError(f"sample: {folder} cannot be written ({error.strerror or error})") from None
    return written


def _packaged(name: str) -> dict[str, np.ndarray]:
    with files("influence_batch.dataset").joinpath("data", name).open("rb") as stream:
        loaded = np.load(stream, allow_pickle=False)
        return {key: loaded[key] for key in loaded.files}


def _digits(seed: int) -> dict[str, pa.Table]:
    """8 by 8 images of handwritten digits: 1,797, of which 360 serve as the test set."""
    data = _packaged("digits.npz")
    columns = {f"pixel_{i}": data["images"][:, i] for i in range(64)}
    return _with_planted_errors(pd.DataFrame(columns), pd.Series(data["labels"]), 360, seed)


def _breast_cancer(seed: int) -> dict[str, pa.Table]:
    """30 measures of cell nuclei of 569 tumours, of which 114 serve as the test set."""
    data = _packaged("breast_cancer.npz")
    frame = pd.DataFrame(data["measures"], columns=[str(name) for name in data["names"]])
    labels = pd.Series(np.where(data["benign"], "benign", "malignant"))
    return _with_planted_errors(frame, labels, 114, seed)


def _with_planted_errors(
    features: pd.DataFrame, labels: pd.Series[Any], n_test: int, seed: int
) -> dict[str, pa.Table]:
    """Split at random; flip 5% of train's labels to another class, uniformly."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(labels))
    test, train = np.sort(order[:n_test]), np.sort(order[n_test:])
    classes = np.unique(labels)
    flipped = np.sort(random.choice(train, round(_PLANTED * len(train)), replace=False))
    codes = np.searchsorted(classes, labels)
    shifts = random.integers(1, len(classes), len(flipped))
    given = labels.copy()
    given.iloc[flipped] = classes[(codes[flipped] + shifts) % len(classes)]
    frame = features.assign(id=np.arange(len(labels)), label=given)
    planted = pd.DataFrame(
        {"id": flipped, "true_label": labels.iloc[flipped], "given_label": given.iloc[flipped]}
    )
    return {
        "train": _table(frame.iloc[train]),
        "test": _table(frame.iloc[test]),
        "planted_errors": _table(planted),
    }


def _noisy_line(seed: int) -> dict[str, pa.Table]:
    """y = -5 x + 5 with noise of deviation 0.1 on x = -5, -4.5, ..., 4.5; two targets set to 100."""
    random = np.random.default_rng(seed)
    x = np.arange(-5.0, 5.0, 0.5)
    y = -5.0 * x + 5.0 + 0.1 * random.standard_normal(len(x))
    wrong = np.flatnonzero(np.isin(x, (-4.5, 2.5)))
    planted = pd.DataFrame({"id": wrong, "true_label": y[wrong], "given_label": 100.0})
    y[wrong] = 100.0
    test_x = np.array([3.2, -3.2, 0.1])
    return {
        "train": _table(pd.DataFrame({"id": np.arange(len(x)), "x": x, "y": y})),
        "test": _table(pd.DataFrame({"id": np.arange(3), "x": test_x, "y": -5.0 * test_x + 5.0})),
        "planted_errors": _table(planted),
    }


def _mnist_1_vs_7(source: Path | None) -> dict[str, pa.Table]:
    """The 1s and 7s of MNIST in file order, as lists of 784 pixels; nothing is planted."""
    if source is None:
        raise InputError("sample: mnist_1_vs_7 needs --source, the path of a Keras mnist.npz")
    expected = "expected a Keras mnist.npz with x_train, y_train, x_test and y_test"
    wanted = ("x_train", "y_train", "x_test", "y_test")
    try:
        arrays, _ = read_npz(source, wanted)
        for key in wanted:
            if key not in arrays:
                raise ValueError(f"it has no {key}")
    except FileNotFoundError:
        raise InputError(f"sample: {source} does not exist; {expected}") from None
    except ValueError as error:
        raise InputError(f"sample: {source} cannot be used ({error}); {expected}") from None
    tables = {}
    for part in ("train", "test"):
        labels = arrays[f"y_{part}"]
        if labels.ndim != 1 or arrays[f"x_{part}"].shape not in ((len(labels), 28, 28), (len(labels), 784)):
            raise InputError(
                f"sample: x_{part} of {source} has the shape {arrays[f'x_{part}'].shape} and y_{part} "
                f"{labels.shape}; expected (n, 28, 28) or (n, 784), and (n,)"
            )
        rows = np.flatnonzero(np.isin(labels, (1, 7)))
        images = arrays[f"x_{part}"][rows].reshape(len(rows), -1)
        pixels = pa.FixedSizeListArray.from_arrays(pa.array(images.ravel()), images.shape[1])
        tables[part] = pa.table({"id": np.arange(len(rows)), "label": labels[rows], "image": pixels})
    return tables


def _table(frame: pd.DataFrame) -> pa.Table:
    return pa.Table.from_pandas(frame, preserve_index=False)
