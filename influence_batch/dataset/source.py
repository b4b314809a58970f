"""A config's `train` or `test` section as a dataset: files found, columns checked, shards cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from influence_batch.dataset.columns import check_comparable, resolve_columns
from influence_batch.dataset.files import find_files
from influence_batch.dataset.reading import feature_width, plan_shards
from influence_batch.dataset.shards import Dataset
from influence_batch.dataset.values import holds_in_float32
from influence_batch.errors import InputError


def open_dataset(
    key: str,
    path: str,
    *,
    id: str | None,
    label: str,
    features: str | Sequence[str] | None,
    shard_rows: int | Callable[[int], int],
    default_id: str | None = None,
    groups: Sequence[str] = (),
) -> Dataset:
    """Find the files of a dataset and check their schemas; reads footers, and one row of lists.

    Args:
        key: `train` or `test`, for messages.
        path, id, label, features: as in the config.
        shard_rows: most rows of a shard, or a function that gives them for a number of features.
        default_id: id column to use where `id` is None and the files have it.
        groups: columns that rows are grouped by.

    Raises:
        InputError: files or schemas that do not fit.
    """
    files = find_files(path, f"{key}.path")
    if id is None and default_id in files[0].schema.names:
        id = default_id
    columns = resolve_columns(files, key, id=id, label=label, features=features, groups=groups)
    width = feature_width(files, columns, key)
    rows = shard_rows if isinstance(shard_rows, int) else shard_rows(width)
    return Dataset(key, columns, plan_shards(files, rows), width, float32=holds_in_float32(files, columns))


def match_columns(train: Dataset, test: Dataset) -> Dataset:
    """The test set with its features in train's order.

    Raises:
        InputError: naming the columns that differ, or the lengths of the lists.
    """
    check_comparable(train.columns, test.columns)
    if train.width != test.width:
        raise InputError(
            f"test.features: column {test.columns.features[0]} of {test.refs[0].path} has lists of "
            f"{test.width} numbers, train has {train.width}; expected the same length"
        )
    if train.columns.embedding:
        return test
    return test.having(columns=replace(test.columns, features=train.columns.features))
