"""Examples as the page shows them: small dictionaries for its data block, `k` saying which kind.

`{k: i, s: data URL, w, h}` an image; `{k: t, s: text, m: 1 if cut}`; `{k: r, r: [[number of the name,
value, deviations or null], ...]}` cells; `{k: a, p: path, s: data URL where it is small}` sound;
`{k: e, s: words}` what could not be shown, and why.
"""

from __future__ import annotations

import base64
import io
import math
import posixpath
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt
from PIL import Image

from influence_batch.config_report import ShowAudio, ShowImage, ShowText
from influence_batch.dataset.columns import is_list, is_number
from influence_batch.dataset.showing import Shown

Item = dict[str, Any]

_CELLS = 6
_CELL_CHARACTERS = 120
_MOST_FILE_BYTES = 40 * 1024**2
_MOST_SOUND_BYTES = 60_000
# What a browser plays, by suffix; any other sound file is only named.
_SOUNDS = {
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".opus": "audio/ogg",
    ".flac": "audio/flac",
    ".m4a": "audio/mp4",
}


@dataclass(frozen=True)
class Scale:
    """What turns raw values into what is shown.

    Attributes:
        low, high: of pixels.
        center, spread: (d,) of the feature columns of a row; NaN where nothing can be said.
    """

    low: float = 0.0
    high: float = 1.0
    center: np.ndarray | None = None
    spread: np.ndarray | None = None


def scale_of(shown: Shown, table: pa.Table, center: np.ndarray | None, spread: np.ndarray | None) -> Scale:
    """How values are to be shown, from those of the train rows in the page.

    Args:
        table: columns `shown.train`.
        center, spread: (d,) mean and standard deviation of the features over all of train, where known.
    """
    if isinstance(shown.show, ShowImage) and shown.pixels:
        if shown.show.range is not None:
            return Scale(*shown.show.range)
        values = _pixels(table, shown.train)
        finite = values[np.isfinite(values)]
        if finite.size == 0:
            return Scale()
        low, high = float(min(finite.min(), 0.0)), float(finite.max())
        return Scale(low, high if high > low else low + 1.0)
    features = shown.train[shown.others :]
    if shown.show.kind != "row" or not features:
        return Scale()
    if center is None or spread is None:
        values = np.column_stack([_numbers(table.column(name)) for name in features])
        if len(values) < 20:
            return Scale()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a column without any number
            center = np.nanmedian(values, axis=0)
            spread = 1.4826 * np.nanmedian(np.abs(values - center), axis=0)
            wide = np.nanstd(values, axis=0)
        spread = np.where(spread > 0, spread, wide)
    return Scale(center=np.asarray(center), spread=np.where(np.asarray(spread) > 0, spread, np.nan))


def items(
    shown: Shown, table: pa.Table, names: Sequence[str], folders: Sequence[str], scale: Scale
) -> list[Item]:
    """Each row of a table of raw values as the page shows it.

    Args:
        names: its columns, in the order of `shown.train`.
        folders: of each row's file.
    """
    show = shown.show
    if isinstance(show, ShowImage):
        if shown.pixels:
            return _pixel_images(show, _pixels(table, names), scale)
        values = table.column(names[0]).to_pylist()
        return [_image_file(show, value, folder) for value, folder in zip(values, folders, strict=True)]
    if isinstance(show, ShowText):
        return [_text(row, show.characters) for row in table.select(list(names)).to_pylist()]
    if isinstance(show, ShowAudio):
        values = table.column(names[0]).to_pylist()
        return [_sound(show, value, folder) for value, folder in zip(values, folders, strict=True)]
    return _rows(shown, table, names, scale)


def _pixels(table: pa.Table, names: Sequence[str]) -> np.ndarray:
    """(n, pixels) float32; NaN where there is none."""
    column = table.column(names[0])
    if len(names) > 1 or not is_list(column.type):
        return np.column_stack([_numbers(table.column(name)).astype(np.float32) for name in names])
    lengths = pc.list_value_length(column).fill_null(0).to_numpy()
    width = int(lengths.max(initial=0))
    if (lengths == width).all():
        flat = pa.chunked_array([chunk.flatten() for chunk in column.chunks], column.type.value_type)
        return _numbers(flat).astype(np.float32).reshape(len(lengths), width)
    values = np.full((len(lengths), width), np.nan, dtype=np.float32)
    for i, row in enumerate(column.to_pylist()):
        values[i, : lengths[i]] = row or []
    return values


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """(n,) float64; NaN where there is no number."""
    if not (pt.is_boolean(column.type) or is_number(column.type)):
        return np.full(len(column), np.nan)
    values = column.cast(pa.int8()) if pt.is_boolean(column.type) else column
    if pt.is_decimal(values.type) or pt.is_integer(values.type):
        values = values.cast(pa.float64(), safe=False)
    return values.to_numpy().astype(np.float64)


def _pixel_images(show: ShowImage, values: np.ndarray, scale: Scale) -> list[Item]:
    assert show.shape is not None
    if values.shape[1] != math.prod(show.shape):
        return [_none(f"{values.shape[1]} pixels, expected {math.prod(show.shape)}") for _ in values]
    span = scale.high - scale.low
    scaled = np.nan_to_num((values - scale.low) / span * 255.0, nan=0.0, posinf=255.0, neginf=0.0)
    images = np.clip(np.rint(scaled), 0, 255).astype(np.uint8).reshape(len(values), *show.shape)
    if images.ndim == 4 and images.shape[3] not in (1, 3):
        images = images.transpose(0, 2, 3, 1)
    if images.ndim == 4 and images.shape[3] == 1:
        images = images[..., 0]
    return [_encoded(Image.fromarray(np.ascontiguousarray(image)), show.size, "PNG") for image in images]


def _image_file(show: ShowImage, value: Any, folder: str) -> Item:
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if value is None:
        return _none("no image (null)")
    try:
        content = value if isinstance(value, bytes) else _read(_place(value, show.folder or folder))
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content)) as image:
                image.draft("RGB", (2 * show.size, 2 * show.size))
                return _encoded(image.convert("RGB"), show.size, "JPEG")
    # Decoders raise what they like on damaged files; one that cannot be shown is no reason to fail a night.
    except Exception as error:
        said = getattr(error, "strerror", None) or type(error).__name__
        name = "the image" if isinstance(value, bytes) else str(value)[:200]
        return _none(f"{name} cannot be shown ({said})")


def _encoded(image: Image.Image, size: int, form: str) -> Item:
    if max(image.size) > size:
        image.thumbnail((size, size))
    stream = io.BytesIO()
    image.save(stream, form, **({"optimize": True} if form == "PNG" else {"quality": 80}))
    return {
        "k": "i",
        "s": _data_url(f"image/{form.lower()}", stream.getvalue()),
        "w": image.width,
        "h": image.height,
    }


def _text(row: dict[str, Any], most: int) -> Item:
    text = "\n".join("" if value is None else str(value) for value in row.values())
    return {"k": "t", "s": text[:most], **({"m": 1} if len(text) > most else {})}


def _sound(show: ShowAudio, value: Any, folder: str) -> Item:
    if value is None:
        return _none("no sound (null)")
    item: Item = {"k": "a", "p": str(value)[:500]}
    kind = _SOUNDS.get(posixpath.splitext(str(value).lower())[1])
    if kind is None:
        return item
    try:
        place = _place(str(value), show.folder or folder)
        content = _read(place, _MOST_SOUND_BYTES)
    # As with images: what cannot be played is named.
    except Exception as error:
        return {**item, "e": getattr(error, "strerror", None) or str(error)[:120]}
    return {**item, "s": _data_url(kind, content)}


def _rows(shown: Shown, table: pa.Table, names: Sequence[str], scale: Scale) -> list[Item]:
    """First the columns that are no features, then the features that are most unusual."""
    others = {number: table.column(names[number]).to_pylist() for number in range(shown.others)}
    features = names[shown.others :]
    if features:
        columns = [table.column(name) for name in features]
        numbers = np.column_stack([_numbers(column) for column in columns])
    found: list[Item] = []
    for i in range(table.num_rows):
        cells: list[list[Any]] = [[number, _cell(values[i]), None] for number, values in others.items()]
        if features:
            away = np.zeros(len(features))
            if scale.center is not None and scale.spread is not None:
                away = np.nan_to_num((numbers[i] - scale.center) / scale.spread)
            for j in np.argsort(-np.abs(away), kind="stable")[:_CELLS].tolist():
                deviation = round(float(away[j]), 1) if scale.center is not None else None
                cells.append([shown.others + j, _cell(columns[j][i].as_py()), deviation])
        found.append(
            {"k": "r", "r": cells} if cells else _none("nothing to show: set report.show in the config")
        )
    return found


def _cell(value: Any) -> str:
    if value is None:
        return "(null)"
    return (f"{value:.6g}" if isinstance(value, float) else str(value))[:_CELL_CHARACTERS]


def _place(path: str, folder: str) -> str:
    if "://" in path or path.startswith("/"):
        return path
    return f"{folder.rstrip('/')}/{path}"


def _read(path: str, most: int = _MOST_FILE_BYTES) -> bytes:
    with fsspec.open(path, "rb") as stream:
        content: bytes = stream.read(most + 1)
    if len(content) > most:
        raise ValueError(f"larger than {most:,} bytes")
    return content


def _data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _none(words: str) -> Item:
    return {"k": "e", "s": words}
