"""What stages keep on disk: whole, sliceable, found again by the next process, never half a file."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influence_batch.execution.parts import (
    InMemoryStore,
    Mapped,
    StoreOnDisk,
    blocks,
    take,
    whole_or_nothing,
)

BOUNDS = [(0, 3), (3, 4), (4, 9)]


def columns(start: int, stop: int) -> dict[str, Any]:
    numbers = np.arange(start, stop)
    return {
        "number": numbers,
        "pair": np.stack([numbers, -numbers], axis=1) / 7,
        "odd": numbers % 2 == 1,
        "hash": numbers.astype(np.uint64) + np.uint64(2**63),
        "text": pa.array([f"row {i}" for i in numbers]),
        "missing": pa.array([None if i % 4 == 0 else int(i) for i in numbers], pa.int8()),
    }


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_columns_are_what_was_written_in_any_order(tmp_path: Path, kind: str) -> None:
    store = InMemoryStore() if kind == "memory" else StoreOnDisk(tmp_path)
    table = store.table("t", BOUNDS)
    for part in (2, 0, 1):
        assert part in table.missing
        table.write(part, columns(*BOUNDS[part]))
    assert table.missing == []
    expected, found = columns(0, 9), table.columns()
    assert list(found) == list(expected)
    for name, values in expected.items():
        for rows in (slice(0, 9), slice(2, 5), slice(3, 4), slice(8, 9), slice(4, 4), slice(None)):
            part = found[name][rows]
            if isinstance(values, pa.Array):
                assert part.equals(values[rows])
            else:
                np.testing.assert_array_equal(part, values[rows])
                assert part.dtype == values.dtype
        assert len(found[name]) == 9
    np.testing.assert_array_equal(np.asarray(found["pair"]), expected["pair"])
    np.testing.assert_array_equal(take(found["pair"], np.array([1, 3, 8])), expected["pair"][[1, 3, 8]])
    assert take(found["text"], np.array([0, 5])).to_pylist() == ["row 0", "row 5"]
    assert len(take(found["number"], np.array([], dtype=int))) == 0
    np.testing.assert_array_equal(Mapped(np.square, found["number"])[2:4], [4, 9])


def test_the_next_process_finds_the_parts_that_were_finished(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    StoreOnDisk(tmp_path).table("t", BOUNDS).write(1, columns(3, 4))
    # What a process that is killed while it writes leaves.
    (tmp_path / "t" / ".000002.arrow.tmp").write_bytes(b"half")
    caplog.set_level(logging.INFO, "influence_batch")
    store = StoreOnDisk(tmp_path)
    table = store.table("t", BOUNDS)
    assert table.missing == [0, 2]
    assert store.taken_over == {"t": (1, 3)}
    assert caplog.messages == ["taken over from an unfinished run: t, 1 of 3 parts"]
    for part in table.missing:
        table.write(part, columns(*BOUNDS[part]))
    np.testing.assert_array_equal(table.columns()["number"][:], np.arange(9))


def test_remembered_arrays_are_computed_once(tmp_path: Path) -> None:
    calls = []

    def compute() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"a": np.arange(3.0), "name": np.array("cg")}

    first = StoreOnDisk(tmp_path).remember("x", compute)
    store = StoreOnDisk(tmp_path)
    again = store.remember("x", compute)
    assert len(calls) == 1
    np.testing.assert_array_equal(first["a"], again["a"])
    assert str(again["name"]) == "cg"
    assert store.taken_over == {"x": (1, 1)}
    assert store.saved("y") is None
    store.save("x", {"a": np.zeros(1)})
    assert list(store.saved("x") or {}) == ["a"]


def test_a_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("ne")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        whole_or_nothing(path, write)
    assert path.read_text() == "old"


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 20))
def test_blocks_cover_all_rows_once(n: int, most: int) -> None:
    numbers = np.arange(n)
    parts = blocks(n, most)
    assert [i for part in parts for i in numbers[part]] == numbers.tolist()
    assert all(part.stop - part.start <= most for part in parts)
