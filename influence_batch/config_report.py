"""The config's section `report`: the page of a run, and how it shows examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

_NAMES = "a column name, a list of names, or patterns such as 'pixel_*'"


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _with_kind(value: Any) -> Any:
    """`text` for `{kind: text}`."""
    if value == {}:
        return {"kind": "row"}
    return {"kind": value} if isinstance(value, str) else value


_Names = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


class _Show(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ShowRow(_Show):
    """Cells of a table."""

    kind: Literal["row"] = "row"
    columns: _Names | None = Field(
        None,
        description=f"{_NAMES} (default: the columns that are no features, and the most unusual features)",
    )


class ShowImage(_Show):
    """Pixels in columns or in a list, an encoded image in a binary column, or the path of an image."""

    kind: Literal["image"] = "image"
    columns: _Names | None = Field(
        None,
        description=f"{_NAMES}: pixels (columns or one list column), or one column of image paths or of the "
        "bytes of image files (default: the feature columns, as pixels)",
    )
    shape: tuple[int, int] | tuple[int, int, int] | None = Field(
        None,
        description="[height, width], [height, width, channels] or [channels, height, width] of pixels, "
        "with 1 or 3 channels",
    )
    range: tuple[float, float] | None = Field(
        None, description="[low, high]: values of black and white (default: as the pixels shown have them)"
    )
    folder: str | None = Field(
        None, description="path or URL that relative image paths count from (default: the data's folder)"
    )
    size: int = Field(96, ge=8, le=512, description="a whole number from 8 to 512: longest side in the page")

    @model_validator(mode="after")
    def _shape_can_be(self) -> Self:
        shape = self.shape
        if shape is not None and (min(shape) < 1 or (len(shape) == 3 and not {shape[0], shape[2]} & {1, 3})):
            raise PydanticCustomError(
                "image_shape",
                "shape as [height, width], [height, width, channels] or [channels, height, width], each 1 or "
                "more, with 1 or 3 channels",
            )
        if self.range is not None and not self.range[0] < self.range[1]:
            raise PydanticCustomError("image_range", "range as [low, high] with low below high")
        return self


class ShowText(_Show):
    """Words."""

    kind: Literal["text"] = "text"
    columns: _Names = Field(description=f"{_NAMES}: the text")
    characters: int = Field(
        600, ge=20, le=20_000, description="a whole number from 20 to 20000: longest text"
    )


class ShowAudio(_Show):
    """Paths of sound files."""

    kind: Literal["audio"] = "audio"
    columns: _Names = Field(description="name of the column of paths of sound files")
    folder: str | None = Field(
        None, description="path or URL that relative paths count from (default: the data's folder)"
    )


Show = Annotated[
    ShowRow | ShowImage | ShowText | ShowAudio, Field(discriminator="kind"), BeforeValidator(_with_kind)
]


class ReportConfig(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    page: bool = Field(True, description="true or false: whether a run has a report.html")
    show: Show = Field(
        ShowRow(), description="row, image, text or audio, or a mapping with `kind` and its keys"
    )


def with_absolute_folder(report: ReportConfig, absolute: Callable[[str], str]) -> ReportConfig:
    """The section with its folder, if it has one, made absolute by a function of paths."""
    folder = getattr(report.show, "folder", None)
    if folder is None:
        return report
    return report.model_copy(update={"show": report.show.model_copy(update={"folder": absolute(folder)})})
