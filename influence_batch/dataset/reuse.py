"""Features that cost, kept on disk for the next run: of shards that stay as they are they are read, not made.

An entry is a file that is named after all that its features are made of: the shard's values, the fitted
steps and the versions of what computes. So nothing has to be declared out of date. Labels are no part of
it. An entry is trusted only as far as its checksum.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

_LOG = logging.getLogger("influence_batch")

# An entry is its checksum, the numbers of its rows and columns, and its values in float64.
_CHECKSUM, _SHAPE = 32, 16
_DAMAGED = ".damaged"
# Packages whose other version may give other bits.
_COMPUTING = ("influence_batch", "numpy", "scipy")


def content_of(features: np.ndarray) -> str:
    """Names values (n, d) as they are stored, type and shape included."""
    digest = hashlib.sha256(f"{features.dtype.str} {features.shape}".encode())
    digest.update(np.ascontiguousarray(features).data)
    return digest.hexdigest()


def fingerprint_of(steps: Sequence[Any]) -> str:
    """Names fitted steps, in order, and the code that they are applied by."""
    digest = hashlib.sha256(" ".join(version(name) for name in _COMPUTING).encode())
    for step in steps:
        digest.update(step.kind.encode())
        for name, values in sorted(vars(step).items()):
            digest.update(f"{name} {content_of(np.asarray(values))}".encode())
    return digest.hexdigest()


@dataclass(frozen=True)
class Reuse:
    """Where the features of a dataset's shards are kept.

    Attributes:
        folder: of this machine.
        contents: what `content_of` says of each shard's values.
    """

    folder: Path
    contents: tuple[str, ...]

    def name(self, shard: int, steps: str) -> str:
        """Of the file for a shard, after steps of that fingerprint."""
        return hashlib.sha256(f"{self.contents[shard]} {steps}".encode()).hexdigest()[:40]

    def get(self, shard: int, steps: str) -> np.ndarray | None:
        """Features (n, c) float64, None where there are none that can be trusted.

        A damaged entry is put aside under another name, so that it is told, and made anew.
        """
        path = self.folder / self.name(shard, steps)
        try:
            content = path.read_bytes()
        except OSError:
            return None
        body = memoryview(content)[_CHECKSUM:]
        if _checksum(path.name, body) != content[:_CHECKSUM]:
            _LOG.warning("features kept in %s are damaged, and are computed again", path)
            with suppress(OSError):
                path.replace(path.with_name(path.name + _DAMAGED))
            return None
        shape = np.frombuffer(body[:_SHAPE], np.int64)
        return np.frombuffer(body[_SHAPE:]).reshape(shape)

    def put(self, shard: int, steps: str, values: np.ndarray, features: np.ndarray) -> None:
        """Keep features; a disk that is full costs time the next night, and is no error.

        Args:
            values: that the features were made of: those of a file that has changed meanwhile are not kept.
        """
        if content_of(values) != self.contents[shard]:
            return
        name = self.name(shard, steps)
        shape = np.array(features.shape, np.int64).tobytes()
        body = np.ascontiguousarray(features).data.cast("B")
        temporary = self.folder / f".{name}-{os.getpid()}-{threading.get_ident()}.tmp"
        try:
            self.folder.mkdir(exist_ok=True)
            with temporary.open("wb") as stream:
                stream.write(_checksum(name, shape, body))
                stream.write(shape)
                stream.write(body)
            # By this machine's clock, which the run's beginning is compared with.
            os.utime(temporary, times=(now := time.time(), now))
            temporary.replace(self.folder / name)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            _LOG.warning("features of a shard are not kept for the next run (%s)", error)

    def names(self, steps: str) -> list[str]:
        """Of all entries of the dataset, by shard."""
        return [self.name(shard, steps) for shard in range(len(self.contents))]


def _checksum(name: str, *parts: memoryview | bytes) -> bytes:
    """The name is part of it: an entry under another's name is none."""
    digest = hashlib.sha256(name.encode())
    for part in parts:
        digest.update(part)
    return digest.digest()


@dataclass(frozen=True)
class Reused:
    """What a run found of its features.

    Attributes:
        by_dataset: for each dataset, shards whose features were there before, of how many.
        damaged: entries that could not be trusted.
    """

    by_dataset: dict[str, tuple[int, int]]
    damaged: int


def count_reused(folder: Path, names: Mapping[str, Sequence[str]], began: float) -> Reused:
    """What was there before a run began.

    Args:
        names: of the entries of each dataset, by shard.
        began: seconds since the epoch.
    """

    def was_there(name: str) -> bool:
        with suppress(OSError):
            return (folder / name).stat().st_mtime < began
        return False

    counts = {key: (sum(map(was_there, of)), len(of)) for key, of in names.items()}
    return Reused(counts, len(list(folder.glob(f"*{_DAMAGED}"))))


def remove_others(folder: Path, names: Collection[str]) -> None:
    """Remove what a run did not use, and the folder where nothing is left."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        if path.name not in names:
            with suppress(OSError):
                path.unlink()
    with suppress(OSError):
        folder.rmdir()
