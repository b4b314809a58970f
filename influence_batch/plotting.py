"""Figures of a run for notebooks and papers, by matplotlib: the optional extra `plot`."""

from __future__ import annotations

import base64
import io
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from influence_batch.config import load_config
from influence_batch.dataset import Dataset
from influence_batch.dataset.showing import Shown, read_shown
from influence_batch.errors import InputError
from influence_batch.execution.parts import whole_or_nothing
from influence_batch.preparation import prepare
from influence_batch.report import Report
from influence_batch.report.page.examples import Item, items, scale_of
from influence_batch.report.wording import expected_rows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
_HARMFUL, _HELPFUL, _SUSPECT, _QUIET = "#b3372f", "#2c8159", "#c4611d", "#9aa3ad"
_MOST_CLASSES = 30
_TEXT = 140


def save_plots(
    report: Report,
    folder: Path,
    form: str = "png",
    test_id: str | None = None,
    examples: int = 5,
    left_out: Callable[[str], None] | None = None,
) -> list[Path]:
    """Write a figure of each kind that the run has.

    Args:
        folder: made if it is not there; files of these names in it are replaced.
        form: png, svg or pdf.
        test_id: of the test point whose most harmful and most helpful examples are shown (default: the one
            that the first suspect harms most).
        examples: of each direction.
        left_out: told why there is no figure of a test point, which needs the data as they were, where none
            is asked for by its id; without it that is an error.

    Returns:
        The files.

    Raises:
        InputError: no matplotlib, an unknown format or test point, data that have changed since the run.
    """
    if form not in FORMATS:
        raise InputError(f"plot: found the format {form!r}; accepted: {', '.join(FORMATS)}")
    _require_matplotlib()
    chosen = _test_id(report, test_id)
    figures = {"influence": plot_influence(report)}
    if (report.run_dir / "noise_matrix.parquet").is_file():
        figures["noise-matrix"] = plot_noise_matrix(report)
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", str(chosen))[:60]
    try:
        figures[f"test-point-{name}"] = plot_test_point(report, chosen, examples)
    except InputError as error:
        if left_out is None or test_id is not None:
            raise
        left_out(f"no figure of a test point: {error}")
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for stem, figure in figures.items():
            paths.append(folder / f"{stem}.{form}")
            whole_or_nothing(paths[-1], lambda path, figure=figure: _save(figure, path, form))  # type: ignore[misc]
    except OSError as error:
        raise InputError(f"plot: {folder} cannot be written ({error.strerror or error})") from None
    return paths


def _save(figure: Figure, path: Path, form: str) -> None:
    figure.savefig(path, format=form, dpi=160, bbox_inches="tight")


def plot_influence(report: Report) -> Figure:
    """Influence on the mean test loss against self-influence, suspects apart, a dot an example."""
    frame = report.examples
    figure, axes = _new(6.0, 4.2)
    for suspect, color, words in ((False, _QUIET, "other examples"), (True, _SUSPECT, "suspects")):
        rows = frame[frame.is_suspect == suspect]
        axes.scatter(
            np.maximum(rows.self_influence, 1e-12),
            rows.mean_test_leave_one_out_influence,
            s=9 if suspect else 5,
            c=color,
            alpha=0.8 if suspect else 0.35,
            linewidths=0,
            label=f"{words} ({len(rows):,})",
            rasterized=len(rows) > 2000,
        )
    axes.axhline(0.0, color="#444444", linewidth=0.6)
    axes.set_xscale("log")
    spread = float(np.nanquantile(np.abs(frame.mean_test_leave_one_out_influence), 0.9))
    axes.set_yscale("symlog", linthresh=max(spread, 1e-15))
    axes.set_xlabel("self-influence")
    axes.set_ylabel("leave-one-out influence on the mean test loss\n(below 0: harmful)")
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_noise_matrix(report: Report) -> Figure:
    """Expected number of wrong labels by true label and given label, the classes with the most first kept."""
    table = report.noise_matrix
    weight = table.groupby("true_label").estimated_errors.sum().add(
        table.groupby("given_label").estimated_errors.sum(), fill_value=0.0
    )  # fmt: skip
    labels = sorted(weight.nlargest(_MOST_CLASSES).index.tolist())
    wide = table.pivot(index="true_label", columns="given_label", values="estimated_errors")
    values = wide.reindex(index=labels, columns=labels).to_numpy(dtype=float)
    k = len(labels)
    size = float(np.clip(0.45 * k + 1.4, 3.2, 11.0))
    figure, axes = _new(size + 0.8, size)
    image = axes.imshow(np.ma.masked_invalid(values), cmap="Blues", vmin=0.0)
    names = [str(label)[:18] for label in labels]
    axes.set_xticks(range(k), names, rotation=0 if max(map(len, names)) <= 3 else 90, parse_math=False)
    axes.set_yticks(range(k), names, parse_math=False)
    axes.set_xlabel("given label")
    axes.set_ylabel("true label")
    most = float(np.nanmax(values)) if np.isfinite(values).any() else 0.0
    if k <= 15:
        for i, j in np.argwhere(np.isfinite(values) & (values >= 0.05 * max(most, 1e-300))):
            value = values[i, j]
            color = "white" if value > 0.55 * most else "#222222"
            axes.text(j, i, expected_rows(value), ha="center", va="center", fontsize=7, color=color)
    figure.colorbar(image, ax=axes, shrink=0.8, label="expected wrong labels")
    return figure


def plot_test_point(report: Report, test_id: Any, examples: int = 5) -> Figure:
    """A test point with the training examples that harm and help it most, as `report.show` shows them.

    Raises:
        InputError: data that have changed since the run.
    """
    cross = report.cross_influence
    cross = cross[(cross.test_id == test_id) & (cross["rank"] <= examples)].sort_values("rank")
    prepared = prepare(load_config(report.run["config"]))
    shown = prepared.shown
    if shown is None:
        raise InputError("plot: the run was made with report.page: false, so report.show was not checked")
    ids = report.examples.id.tolist()
    row_of = {id_: row for row, id_ in enumerate(ids)}
    wanted = list(dict.fromkeys(cross.train_id.tolist()))
    found, table = _items(prepared.train, shown, shown.train, {id_: row_of[id_] for id_ in wanted}, None)
    points = report.test_points
    place = int(np.flatnonzero((points.id == test_id).to_numpy())[0])
    own_set = prepared.train if prepared.test is None else prepared.test
    own_row = row_of[test_id] if prepared.test is None else place
    own, _ = _items(own_set, shown, shown.test, {test_id: own_row}, table)
    labels = report.examples.set_index("id").given_label
    point = points.iloc[place]
    per_row = max(len(cross[cross.direction == way]) for way in ("harmful", "helpful"))
    figure, _ = _new(1.5 * (per_row + 1.5), 4.0, axes=False)
    widths = [1.0, 0.25, *([1.0] * per_row)]
    grid = figure.add_gridspec(2, per_row + 2, hspace=0.5, wspace=0.15, width_ratios=widths)
    axes = figure.add_subplot(grid[:, 0])
    _draw(axes, own[test_id])
    axes.set_title(
        f"test point {test_id}\nlabel {point.label}, predicted {point.predicted_label}", fontsize=8
    )
    for line, (way, color) in enumerate((("harmful", _HARMFUL), ("helpful", _HELPFUL))):
        for number, row in enumerate(cross[cross.direction == way].itertuples()):
            axes = figure.add_subplot(grid[line, number + 2])
            _draw(axes, found[row.train_id], color)
            influence = row.leave_one_out_influence
            influence = row.influence if pd.isna(influence) else influence
            axes.set_title(
                f"{row.train_id}: {labels[row.train_id]}\n{influence:+.2g}", fontsize=7, parse_math=False
            )
            if number == 0:
                axes.set_ylabel(f"most {way}", color=color, fontsize=8)
    return figure


def _items(
    dataset: Dataset, shown: Shown, names: Sequence[str], rows: Mapping[Any, int], like: pa.Table | None
) -> tuple[dict[Any, Item], pa.Table]:
    """Examples by id, and their raw values.

    Args:
        like: raw values of train that say how these are to be scaled; None: their own.
    """
    order = np.unique(np.fromiter(rows.values(), dtype=np.int64))
    if order[-1] >= dataset.n_rows:
        raise _changed(dataset)
    id_column = dataset.columns.id
    table, folders = read_shown(dataset, [*names, *([id_column] if id_column else [])], order)
    if id_column is not None:
        have = dict(zip(order.tolist(), table.column(id_column).to_pylist(), strict=True))
        if any(have[row] != id_ for id_, row in rows.items()):
            raise _changed(dataset)
    if not names:
        return {id_: {"k": "e", "s": "set report.show"} for id_ in rows}, table
    scale = scale_of(shown, table if like is None else like, None, None)
    made = dict(zip(order.tolist(), items(shown, table, names, folders, scale), strict=True))
    for item in made.values():
        for cell in item.get("r", ()):
            cell[0] = names[cell[0]]
    return {id_: made[row] for id_, row in rows.items()}, table


def _changed(dataset: Dataset) -> InputError:
    return InputError(
        f"plot: {dataset.refs[0].path} has other rows than when the run was made; expected the same data, or "
        "a run of these"
    )


def _draw(axes: Any, item: Item, color: str | None = None) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_color(color or "#444444")
        spine.set_linewidth(1.4 if color else 0.8)
    if item["k"] == "i":
        content = base64.b64decode(item["s"].split(",", 1)[1])
        image = np.asarray(Image.open(io.BytesIO(content)))
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        return
    if item["k"] == "r":
        words = "\n".join(f"{name}: {value}" for name, value, _ in item["r"])
    else:
        words = str(item.get("s") if item["k"] in ("t", "e") else item["p"])
    words = "\n".join(textwrap.wrap(words[:_TEXT], 24)) if item["k"] != "r" else words[:400]
    axes.text(
        0.04, 0.96, words, transform=axes.transAxes, va="top", fontsize=5, clip_on=True, parse_math=False
    )


def _test_id(report: Report, given: str | None) -> Any:
    """The test point of an id as text, or the one that the first suspect harms most."""
    ids = report.test_points.id
    if given is None:
        for harmed in report.suspects.harmed_test_ids.head(1):
            if harmed is not None and len(harmed):
                return harmed[0]
        return ids.iloc[0]
    found = ids[ids.astype(str) == given]
    if not len(found):
        some = ", ".join(ids.astype(str).head(5))
        raise InputError(f"plot: no test point {given!r} in {report.run_dir}; its test points: {some}, ...")
    return found.iloc[0]


def _require_matplotlib() -> None:
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise InputError(
            "plot: matplotlib is not installed; expected it from the extra `plot`: pip install "
            "'influence-batch[plot]'"
        ) from None


def _new(width: float, height: float, axes: bool = True) -> tuple[Figure, Any]:
    _require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    if not axes:
        return figure, None
    inner = figure.add_subplot()
    inner.spines[["top", "right"]].set_visible(False)
    return figure, inner
