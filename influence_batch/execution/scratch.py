"""Loaded shards that do not fit into memory, on a disk of the machine that works on them.

Reading a column of lists from Parquet costs several times what is then computed on it, and from a file
system across the network more; what was decoded once is mapped from here at every later pass.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import weakref
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from influence_batch.execution.parts import read_columns, write_columns

_LOG = logging.getLogger("influence_batch")


class Scratch:
    """A folder of its own under `parent`, gone when this object is, or when the process ends.

    It holds dataclasses whose arrays, numpy's and Arrow's, have a row for each row of the shard; what
    else they have stays in memory. A disk that is full costs time, no error: shards are then read again.
    """

    def __init__(self, parent: Path) -> None:
        self._folder: Path | None = None
        self._kept: dict[int, Any] = {}
        self._full = False
        try:
            parent.mkdir(parents=True, exist_ok=True)
            self._folder = Path(tempfile.mkdtemp(prefix="shards-", dir=parent))
        except OSError as error:
            self._give_up(error)
        else:
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)

    def put(self, index: int, shard: Any) -> None:
        """Keep a shard under its number."""
        if self._folder is None or self._full:
            return
        arrays = {
            field.name: getattr(shard, field.name)
            for field in fields(shard)
            if isinstance(getattr(shard, field.name), (np.ndarray, pa.Array))
        }
        temporary = self._path(index).with_name(f".{index}-{threading.get_ident()}.tmp")
        try:
            write_columns(temporary, arrays)
            temporary.replace(self._path(index))
        except OSError as error:
            temporary.unlink(missing_ok=True)
            self._give_up(error)
        else:
            self._kept[index] = replace(shard, **dict.fromkeys(arrays))

    def get(self, index: int) -> Any:
        """The shard, its arrays mapped and read-only; None where it is not kept."""
        shard = self._kept.get(index)
        if shard is None or self._folder is None:
            return None
        try:
            return replace(shard, **read_columns(self._path(index), mapped=True))
        except FileNotFoundError:
            # Moved to another machine, or someone has tidied up.
            return None

    def _path(self, index: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{index}.arrow"

    def _give_up(self, error: OSError) -> None:
        if not self._full:
            _LOG.warning("no room for shards on disk (%s): they are read again at every pass", error)
        self._full = True

    def __reduce__(self) -> tuple[Any, ...]:
        """Elsewhere there is no such folder, and nothing is kept."""
        return _nowhere, ()


def _nowhere() -> Scratch:
    scratch = Scratch.__new__(Scratch)
    scratch._folder, scratch._kept, scratch._full = None, {}, True
    return scratch
