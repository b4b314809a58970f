"""Folders and files anywhere fsspec reaches: pathlib's paths on disk, universal_pathlib's elsewhere.

What is elsewhere has no rename, no locks and no empty folders. A file appears there when it is complete, as
object stores have it, and `report.placing` makes whole runs of that.
"""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from upath import UPath

from influence_batch.errors import InputError
from influence_batch.execution.parts import whole_or_nothing
from influence_batch.redaction import redacted

Place: TypeAlias = Path | UPath

_T = TypeVar("_T")
_LOCAL = ("file", "local")
_AT_ONCE = 16
_LONGEST = 200
# Errors of these packages mean what they say; any other package's is that of a file system.
_KNOWN = {"influence_batch", "pyarrow", "numpy", "pandas", "dask", "distributed", *sys.stdlib_module_names}


def as_place(path: str | Place, key: str) -> Place:
    """A path or URL as something that can be read and written.

    Args:
        key: of the config, or a command, for messages.

    Raises:
        InputError: a URL of a kind that is not known, or whose package is not installed.
    """
    if isinstance(path, Path):
        return path
    text = str(path)
    if not isinstance(path, UPath) and "://" not in text:
        return Path(text)
    if "::" in text:
        raise InputError(f"{key}: found the chained URL {text}; accepted: a plain one, such as s3://bucket/x")
    with as_input_error(text, key):
        try:
            if text.split("://")[0] in _LOCAL:
                return Path(url_to_fs(text)[1])
            place = path if isinstance(path, UPath) else UPath(text)
            place.fs.invalidate_cache()  # listings are remembered; the question is what is there now
        except (ImportError, ValueError) as error:
            raise InputError(
                f"{key}: {text} cannot be opened ({said(error)}); expected a local path or an fsspec URL"
            ) from None
        return place


def is_remote(place: str | Place) -> bool:
    """Whether a place is none of this machine's paths."""
    return not isinstance(place, Path) and "://" in str(place)


def said(error: BaseException) -> str:
    """What an error says, in a line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return str(text).splitlines()[0][:_LONGEST].rstrip(".")


@contextmanager
def as_os_error(place: str | Place) -> Iterator[None]:
    """Errors that the libraries behind a URL have of their own, as OSError: it may pass by itself.

    No answer, no credentials: each library calls them differently. Those that are OSError learn the URL.
    """
    try:
        yield
    except OSError as error:
        # One of Arrow's, of a damaged file, is a plain OSError without a number.
        if is_remote(place) and error.filename is None and (error.errno or type(error) is not OSError):
            error.filename, error.strerror = redacted(str(place)), redacted(said(error))
        raise
    except Exception as error:
        if not is_remote(place) or type(error).__module__.partition(".")[0] in _KNOWN:
            raise
        raise OSError(errno.EIO, redacted(said(error)), redacted(str(place))) from None


@contextmanager
def as_input_error(place: str | Place, key: str) -> Iterator[None]:
    """What goes wrong at a URL, as a message for who gave it; on disk errors are left as they are."""
    try:
        with as_os_error(place):
            yield
    except OSError as error:
        if not is_remote(place):
            raise
        raise InputError(
            f"{key}: {place} cannot be reached ({said(error)}); expected a bucket or server that is there, "
            "and credentials for it in the environment"
        ) from None


def children(folder: Place, pattern: str) -> list[Place]:
    """What stands in a folder under names that match, as it is now; nothing where there is no such folder.

    Raises:
        OSError: it cannot be listed.
    """
    if isinstance(folder, Path):
        return list(folder.glob(pattern))
    with as_os_error(folder):
        folder.fs.invalidate_cache()
        try:
            paths = folder.fs.ls(folder.path, detail=False)
        except FileNotFoundError:
            return []
    names = {str(path).rstrip("/").rsplit("/", 1)[-1] for path in paths}
    return [folder / name for name in sorted(names) if fnmatchcase(name, pattern)]


def is_file(place: Place) -> bool:
    """Whether a file is there.

    Raises:
        OSError: a URL that does not answer.
    """
    with as_os_error(place):
        return bool(place.is_file())


def each(function: Callable[[Any], _T], places: Sequence[Place]) -> list[_T]:
    """A function of each place: those elsewhere are asked side by side, for each answer takes its time."""
    if not places or not is_remote(places[0]):
        return [function(place) for place in places]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return list(pool.map(function, places))


def read_text(place: Place) -> str:
    """A file of text.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    with as_os_error(place):
        return str(place.read_text(encoding="utf-8"))


def read_table(place: Place, columns: Sequence[str] | None = None) -> pa.Table:
    """A Parquet file or a folder of them; keys in names of folders are no columns.

    Raises:
        OSError: it is not there, or cannot be read.
    """
    names = None if columns is None else list(columns)
    if isinstance(place, Path):
        return pq.read_table(place, columns=names, partitioning=None)
    with as_os_error(place):
        return pq.read_table(place.path, columns=names, partitioning=None, filesystem=place.fs)


@contextmanager
def parquet_file(place: Place) -> Iterator[pq.ParquetFile]:
    """A Parquet file, opened; on disk without a Python file, see `dataset.files.open_parquet`.

    Raises:
        OSError: it is not there, or cannot be read.
        pa.ArrowException: it is no Parquet file.
    """
    if isinstance(place, Path):
        with pq.ParquetFile(place) as file:
            yield file
        return
    with as_os_error(place), place.open("rb") as stream, pq.ParquetFile(stream) as file:
        yield file


def write_whole(place: Place, write: Callable[[Path], None]) -> None:
    """Let `write` make a file of this machine, and give it its place once it is whole.

    Raises:
        OSError: it cannot be written.
    """
    if isinstance(place, Path):
        whole_or_nothing(place, write)
        return
    with tempfile.TemporaryDirectory(prefix="influence_batch-") as folder:
        file = Path(folder) / place.name
        write(file)
        upload(file, place)


def upload(file: Path, place: UPath, new: bool = False) -> None:
    """Bring a file of this machine to a URL.

    Args:
        new: whether the place must be free, where its file system can tell at the very moment.

    Raises:
        OSError: it cannot be written, or is taken (which error that is differs).
    """
    with as_os_error(place):
        if new:
            place.fs.put_file(str(file), place.path, mode="create")
        else:
            place.fs.put_file(str(file), place.path)


def local_folder(place: UPath) -> Path:
    """A folder of this machine, always the same, for what is at work on a URL.

    It is below the folder for temporary files, which the environment variable TMPDIR names.

    Raises:
        InputError: it belongs to somebody else.
        OSError: it cannot be made.
    """
    own = Path(tempfile.gettempdir()) / f"influence_batch-{os.getuid()}"
    own.mkdir(mode=0o700, exist_ok=True)
    found = own.lstat()
    if own.is_symlink() or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise InputError(
            f"reports: {own}, where the work on {place} is kept, is not this user's alone; remove it, or let "
            "TMPDIR name another folder"
        )
    folder = own / hashlib.sha256(str(place).encode()).hexdigest()[:16]
    folder.mkdir(exist_ok=True)
    return folder
