"""Finding and opening Parquet files, wherever fsspec reaches."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileOpener

from influence_batch.errors import InputError, MissingFileError
from influence_batch.storage import as_os_error, said

_SUFFIXES = (".parquet", ".pq")


@dataclass(frozen=True)
class ParquetFileInfo:
    """What the footer of a file says.

    Attributes:
        path: with the protocol, as fsspec opens it.
        schema: of its columns.
        row_groups: number of rows in each.
    """

    path: str
    schema: pa.Schema
    row_groups: tuple[int, ...]

    @property
    def rows(self) -> int:
        return sum(self.row_groups)


def find_files(path: str, key: str) -> list[ParquetFileInfo]:
    """The Parquet files a config's `path` names, in natural order of their names, footers read.

    Args:
        path: a file, folder (searched in depth, hidden and underscored names left out), glob or URL.
        key: the config key, for messages.

    Raises:
        InputError: nothing there, not Parquet, truncated, or no rows at all.
    """
    try:
        with as_os_error(path):
            filesystem, root = url_to_fs(path)
    except (ValueError, ImportError, OSError) as error:
        raise InputError(
            f"{key}: {path} cannot be opened ({said(error)}); expected a Parquet file, folder, glob or "
            "fsspec URL"
        ) from None
    try:
        with as_os_error(path):
            names = _names(filesystem, root, path, key)
    except (OSError, ImportError) as error:
        raise InputError(f"{key}: {path} cannot be listed ({said(error)})") from None
    prefix, suffix = "", ""
    if "://" in path:
        protocol, rest = path.split("://", 1)
        # What a chained URL looks into: the `::file:///a.zip` of `zip://*.parquet::file:///a.zip`.
        prefix, suffix = f"{protocol}://", "".join(f"::{part}" for part in rest.split("::")[1:])
    names = sorted((str(name) for name in names), key=natural)
    files = [read_footer(prefix + name + suffix if "://" not in name else name, key) for name in names]
    if sum(file.rows for file in files) == 0:
        raise InputError(f"{key}: {path} has no rows; expected at least one labelled example")
    return [file for file in files if file.rows > 0]


def _names(filesystem: fsspec.AbstractFileSystem, root: str, path: str, key: str) -> list[str]:
    # What is there under the very name is no glob: brackets in a folder's name, `?` in a URL.
    literal = filesystem.exists(root)
    if not literal and any(mark in root for mark in "*?["):
        names = [name for name in filesystem.glob(root) if filesystem.isfile(name)]
        if not names:
            raise InputError(f"{key}: {path} matches no file; expected a glob that names Parquet files")
        return names
    if not literal:
        raise InputError(f"{key}: {path} does not exist; expected a Parquet file, folder, glob or fsspec URL")
    if not filesystem.isdir(root):
        return [root]
    names = [name for name in filesystem.find(root) if _is_data(name, root)]
    if not names:
        raise InputError(f"{key}: the folder {path} has no {' or '.join('*' + s for s in _SUFFIXES)} file")
    return names


def file_state(path: str) -> str:
    """What changes when the content of a file does: size with time, inode, ETag or version.

    Begins with `unknown` where the file system tells nothing but the size.

    Raises:
        InputError: the file is gone.
    """
    try:
        with as_os_error(path):
            filesystem, root = url_to_fs(path)
            # Listings are remembered; the question is what is there now.
            filesystem.invalidate_cache()
            info = filesystem.info(root)
    except FileNotFoundError:
        raise InputError(f"{path} is gone; expected it to stay as it was when the audit began") from None
    stamps = {key: str(info[key]) for key in _STAMPS if info.get(key) is not None}
    return f"{'' if stamps else 'unknown '}size {info.get('size')} {stamps}"


# As the file systems of fsspec call them.
_STAMPS = (
    "mtime", "ino", "ETag", "etag", "LastModified", "last_modified", "updated", "md5Hash", "generation",
    "version_id", "VersionId",
)  # fmt: skip


def natural(name: str) -> list[str | int]:
    """Sort key under which part-2 comes before part-10."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"(\d+)", name))]


def _is_data(name: str, root: str) -> bool:
    inner = name[len(root) :].strip("/").split("/")
    return name.endswith(_SUFFIXES) and not any(part.startswith((".", "_")) for part in inner)


def read_footer(path: str, key: str) -> ParquetFileInfo:
    """Schema and row groups of one file.

    Raises:
        InputError: not Parquet, or truncated.
    """
    with open_parquet(path, key) as file:
        groups = tuple(file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups))
        return ParquetFileInfo(path, file.schema_arrow, groups)


@contextmanager
def open_parquet(path: str, key: str, buffer_bytes: int = 0) -> Iterator[pq.ParquetFile]:
    """A Parquet file, with what goes wrong while it is read told in words.

    Args:
        buffer_bytes: if not 0, a column of a row group is read through a buffer of this size.

    Raises:
        InputError: missing, not Parquet, truncated or damaged.
    """
    try:
        with as_os_error(path), fsspec.open(path, "rb") as stream:
            try:
                # Arrow's threads may let go of what they read after the read has returned. A Python file they
                # let go of while the interpreter ends aborts the process (apache/arrow#34314).
                source = pa.OSFile(stream.path) if isinstance(stream, LocalFileOpener) else stream
                file = pq.ParquetFile(source, page_checksum_verification=True, buffer_size=buffer_bytes)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
                raise InputError(
                    f"{key}: {path} is not a Parquet file, or is cut off ({_first_line(error)}); "
                    "expected a whole Parquet file"
                ) from None
            yield file
    except FileNotFoundError:
        raise MissingFileError(f"{key}: {path} does not exist; expected a Parquet file") from None
    except PermissionError as error:
        raise MissingFileError(
            f"{key}: {path} cannot be read ({said(error)}); expected a Parquet file"
        ) from None
    except pa.ArrowInvalid as error:
        raise InputError(f"{key}: {path} is damaged ({_first_line(error)}); write it again") from None
    except OSError as error:
        # Arrow reports broken pages as OSError without an errno; a real one is a matter for a retry.
        if error.errno is None:
            raise InputError(f"{key}: {path} is damaged ({_first_line(error)}); write it again") from None
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
