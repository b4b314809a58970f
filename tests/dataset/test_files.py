"""Finding Parquet files by path, folder, glob and URL."""

from __future__ import annotations

import errno
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileOpener

from influence_batch.dataset.files import file_state, find_files, natural, open_parquet
from influence_batch.errors import InputError


def put(path: Path, *values: int, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"x": pa.array(values, pa.int64())}), path, **options)


def found(path: str | Path) -> list[str]:
    return [file.path for file in find_files(str(path), "train.path")]


def refusal(path: str | Path) -> str:
    with pytest.raises(InputError) as caught:
        find_files(str(path), "train.path")
    return str(caught.value)


def test_a_footer(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", *range(7), row_group_size=3)
    (file,) = find_files(str(tmp_path / "a.parquet"), "train.path")
    assert file.path == str(tmp_path / "a.parquet")
    assert file.row_groups == (3, 3, 1)
    assert file.rows == 7
    assert file.schema.names == ["x"]


def test_a_file_needs_no_suffix(tmp_path: Path) -> None:
    put(tmp_path / "data", 1)
    assert found(tmp_path / "data") == [str(tmp_path / "data")]


def test_folders_are_searched_in_depth_and_in_natural_order(tmp_path: Path) -> None:
    for name in ("part-10.parquet", "part-2.parquet", "b/1.pq", "a10/1.parquet", "a9/1.parquet"):
        put(tmp_path / name, 1)
    for name in ("_tmp.parquet", ".part-1.parquet", "_old/1.parquet", ".cache/1.parquet", "b/_x.parquet"):
        put(tmp_path / name, 1)
    (tmp_path / "notes.txt").write_text("no data")
    names = ["a9/1.parquet", "a10/1.parquet", "b/1.pq", "part-2.parquet", "part-10.parquet"]
    assert found(tmp_path) == [str(tmp_path / name) for name in names]
    assert found(f"{tmp_path}/") == [str(tmp_path / name) for name in names]


def test_a_hidden_folder_that_is_asked_for_is_read(tmp_path: Path) -> None:
    put(tmp_path / "_staging" / "1.parquet", 1)
    assert found(tmp_path / "_staging") == [str(tmp_path / "_staging" / "1.parquet")]


def test_globs(tmp_path: Path) -> None:
    for name in ("d1/p-10.parquet", "d1/p-9.parquet", "d2/p-1.parquet", "d2/q.parquet"):
        put(tmp_path / name, 1)
    (tmp_path / "d2" / "p-2.parquet").mkdir()
    assert found(tmp_path / "d*" / "p-*.parquet") == [
        str(tmp_path / name) for name in ("d1/p-9.parquet", "d1/p-10.parquet", "d2/p-1.parquet")
    ]
    assert found(tmp_path / "d2" / "[q]*") == [str(tmp_path / "d2" / "q.parquet")]


def test_a_name_that_looks_like_a_glob(tmp_path: Path) -> None:
    put(tmp_path / "run[1]" / "a.parquet", 1)
    assert found(tmp_path / "run[1]" / "a.parquet") == [str(tmp_path / "run[1]" / "a.parquet")]
    assert found(tmp_path / "run[1]") == [str(tmp_path / "run[1]" / "a.parquet")]


def test_file_urls(tmp_path: Path) -> None:
    put(tmp_path / "part-2.parquet", 1)
    put(tmp_path / "part-10.parquet", 1)
    urls = [f"file://{tmp_path}/part-{number}.parquet" for number in (2, 10)]
    assert found(f"file://{tmp_path}") == urls
    assert found(f"file://{tmp_path}/part-*.parquet") == urls
    assert found(urls[0]) == urls[:1]


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    filesystem = fsspec.filesystem("memory")
    yield filesystem
    filesystem.rm("/bucket", recursive=True)


def test_memory_urls(memory: fsspec.AbstractFileSystem) -> None:
    for name in ("part-10.parquet", "part-2.parquet", "_temporary.parquet"):
        with memory.open(f"/bucket/in/{name}", "wb") as stream:
            pq.write_table(pa.table({"x": [1, 2]}), stream)
    urls = ["memory:///bucket/in/part-2.parquet", "memory:///bucket/in/part-10.parquet"]
    assert found("memory://bucket/in") == urls
    assert found("memory://bucket/in/part-*.parquet") == urls
    assert found("memory://bucket/in/part-2.parquet") == urls[:1]
    with open_parquet(urls[0], "train.path") as file:
        assert file.read().column("x").to_pylist() == [1, 2]
    assert refusal("memory://bucket/out") == (
        "train.path: memory://bucket/out does not exist; expected a Parquet file, folder, glob or fsspec URL"
    )


def test_chained_urls(tmp_path: Path) -> None:
    put(tmp_path / "a.parquet", 5, 6)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.write(tmp_path / "a.parquet", "in/a.parquet")
    for inner in ("in", "in/*.parquet", "in/a.parquet"):
        (file,) = find_files(f"zip://{inner}::file://{tmp_path}/a.zip", "train.path")
        assert file.rows == 2
    assert found(f"simplecache::file://{tmp_path}/a.parquet") == [f"simplecache::file://{tmp_path}/a.parquet"]


@pytest.mark.parametrize(
    "names",
    [
        ["part-2", "part-10"],
        ["a1b2", "a1b10", "a2b1"],
        ["2", "10", "a"],
        ["part-\u00b2", "part-\u00b23"],
        ["x-\u0663", "x-12"],
    ],
)
def test_natural_order(names: list[str]) -> None:
    backwards = names[::-1]
    assert sorted(backwards, key=natural) == names


def test_files_without_rows_are_left_out(tmp_path: Path) -> None:
    put(tmp_path / "1.parquet")
    put(tmp_path / "2.parquet", 1)
    assert found(tmp_path) == [str(tmp_path / "2.parquet")]


class TestRefusals:
    def test_nothing_there(self, tmp_path: Path) -> None:
        assert refusal(tmp_path / "no.parquet") == (
            f"train.path: {tmp_path}/no.parquet does not exist; "
            "expected a Parquet file, folder, glob or fsspec URL"
        )
        assert refusal(tmp_path / "*.parquet") == (
            f"train.path: {tmp_path}/*.parquet matches no file; expected a glob that names Parquet files"
        )

    def test_an_empty_folder(self, tmp_path: Path) -> None:
        put(tmp_path / "_hidden.parquet", 1)
        assert refusal(tmp_path) == f"train.path: the folder {tmp_path} has no *.parquet or *.pq file"

    def test_no_rows(self, tmp_path: Path) -> None:
        put(tmp_path / "1.parquet")
        put(tmp_path / "2.parquet")
        message = f"train.path: {tmp_path} has no rows; expected at least one labelled example"
        assert refusal(tmp_path) == message

    @pytest.mark.parametrize("content", [b"", b"id,label\n1,2\n", b"PAR1" + 40 * b"x"])
    def test_not_parquet(self, tmp_path: Path, content: bytes) -> None:
        put(tmp_path / "1.parquet", 1)
        (tmp_path / "2.parquet").write_bytes(content)
        message = refusal(tmp_path)
        assert message.startswith(f"train.path: {tmp_path}/2.parquet is not a Parquet file, or is cut off (")
        assert message.endswith("); expected a whole Parquet file")
        assert "\n" not in message

    def test_cut_off(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        put(path, *range(1000))
        path.write_bytes(path.read_bytes()[:-10])
        assert refusal(path).startswith(f"train.path: {path} is not a Parquet file, or is cut off (")

    def test_protocols(self) -> None:
        assert refusal("gopher://host/a.parquet") == (
            "train.path: gopher://host/a.parquet cannot be opened (Protocol not known: gopher); "
            "expected a Parquet file, folder, glob or fsspec URL"
        )

    def test_a_file_that_goes_away(self, tmp_path: Path) -> None:
        with (
            pytest.raises(InputError) as caught,
            open_parquet(str(tmp_path / "a.parquet"), "train.path"),
        ):
            pass
        assert str(caught.value) == (
            f"train.path: {tmp_path}/a.parquet does not exist; expected a Parquet file"
        )

    def test_a_file_that_may_not_be_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put(tmp_path / "a.parquet", 1)

        def refuse(path: str, mode: str) -> None:
            raise PermissionError(errno.EACCES, "Permission denied", path)

        monkeypatch.setattr(fsspec, "open", refuse)
        assert refusal(tmp_path / "a.parquet") == (
            f"train.path: {tmp_path}/a.parquet cannot be read (Permission denied); expected a Parquet file"
        )


def test_local_files_are_read_without_python_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as Arrow's threads let go of while the interpreter ends: that aborted one refusal in thirty."""
    put(tmp_path / "a b.parquet", *range(1000))

    def refuse(*_: object) -> None:
        raise AssertionError("read through a Python file")

    monkeypatch.setattr(LocalFileOpener, "read", refuse)
    for path in (str(tmp_path / "a b.parquet"), f"file://{tmp_path}/a b.parquet"):
        with open_parquet(path, "train.path") as file:
            assert file.read().column("x").to_pylist() == list(range(1000))


class TestDamage:
    """A footer that is whole says nothing of the pages before it."""

    def damage(self, path: Path, **options: object) -> None:
        put(path, *range(20_000), **options)
        content = bytearray(path.read_bytes())
        middle = len(content) // 2
        content[middle : middle + 8] = b"\xff" * 8
        path.write_bytes(content)

    @pytest.mark.parametrize("compression", ["snappy", "gzip"])
    def test_compressed_pages(self, tmp_path: Path, compression: str) -> None:
        path = tmp_path / "a.parquet"
        self.damage(path, compression=compression, use_dictionary=False)
        (file,) = find_files(str(path), "train.path")
        assert file.rows == 20_000
        with (
            pytest.raises(InputError, match=f"^train.path: {path} is damaged \\(.+\\); write it again$"),
            open_parquet(str(path), "train.path") as opened,
        ):
            opened.read()

    def test_checksums_are_verified(self, tmp_path: Path) -> None:
        """Uncompressed pages decode whatever is in them."""
        path = tmp_path / "a.parquet"
        self.damage(path, compression="none", use_dictionary=False, write_page_checksum=True)
        with (
            pytest.raises(InputError, match=r"is damaged .*CRC"),
            open_parquet(str(path), "train.path") as opened,
        ):
            opened.read()


class TestFileState:
    def test_changes_with_the_content_and_not_with_what_backups_do(self, tmp_path: Path) -> None:
        path = tmp_path / "t.parquet"
        path.write_bytes(b"one")
        before = file_state(str(path))
        path.chmod(0o600)
        (tmp_path / "copy").hardlink_to(path)
        assert file_state(str(path)) == before
        (tmp_path / "new").write_bytes(b"two")
        (tmp_path / "new").replace(path)
        assert file_state(str(path)) != before
        path.unlink()
        with pytest.raises(InputError, match="is gone"):
            file_state(str(path))

    def test_says_where_a_change_cannot_be_seen(self) -> None:
        with fsspec.open("memory://state/t.parquet", "wb") as stream:
            stream.write(b"one")
        assert file_state("memory://state/t.parquet").startswith("unknown size 3")
