"""The stage that gathers what the page of a run shows: rows, examples, figures of plots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from influence_batch.dataset import Dataset
from influence_batch.dataset.showing import Shown, read_shown, row_bytes
from influence_batch.execution.parts import blocks, take
from influence_batch.report.page import (
    Distribution,
    Examples,
    PageContent,
    Point,
    Reviewed,
    page_rows,
    parts_of,
)
from influence_batch.report.page.content import as_json
from influence_batch.report.page.examples import Item, Scale, items, scale_of
from influence_batch.report.page.plots import clipped
from influence_batch.stages import Crossed, Data, Found, Model

# What the page may have: its rows, bytes of rows, bytes of rows, tables and examples together. With plots,
# styles and script it stays under 5 MB.
MOST_ROWS = 5_000
_ROW_BYTES, _ALL_BYTES = 2_200_000, 4_750_000
# Rows whose evidence is shown whole before any other row's own example.
_WHOLE = 200
_AT_ONCE = 128
# Raw values that are held while examples are made of them.
_RAW_BYTES = 96 * 1024**2
_BINS = 20
_REVIEWED_BINS = (0.0, 0.2, 0.4, 0.6, 0.8, 0.9, 1.0)


def gather_page(
    data: Data,
    model: Model,
    crossed: Crossed,
    found: Found,
    suspects: pa.Table,
    tables: Mapping[str, pa.Table],
    started: datetime,
    told: Sequence[tuple[float, bool]] = (),
) -> PageContent:
    """What the page shows; reads the rows it shows from the user's files.

    Args:
        suspects: the table of this name, by rank.
        tables: `classes`, `noise_matrix`, `depths`, `groups`, as far as there are such.
        told: of each verdict the p_mislabeled that it was on, and whether the label was wrong.

    Raises:
        InputError: a file that is gone or damaged.
    """
    n_rows = min(len(suspects), MOST_ROWS)
    explained = min(len(suspects), data.prepared.config.detection.evidence)
    content = PageContent(
        started=started,
        suspects=suspects.slice(0, n_rows),
        detailed=min(n_rows, explained),
        explained=explained,
        groups={},
        tables=tables,
        classes=data.train.classes or (),
        distribution=_distribution(found.reading.p_mislabeled),
        reviewed=_reviewed(told),
        points=_points(crossed, suspects),
    )
    content = _having(content, parts=parts_of(content), train=_ALL_SHOWN, test=_ALL_SHOWN)
    while True:
        cut = content.suspects.slice(0, n_rows)
        groups = _groups(data, found.listing.rows[:n_rows])
        content = _having(content, suspects=cut, groups=groups, detailed=min(content.detailed, n_rows))
        written = len(as_json(page_rows(content)).encode())
        if written <= _ROW_BYTES or n_rows == 0:
            break
        fits = min(0.9, 0.95 * _ROW_BYTES / written)
        if content.detailed > _WHOLE:
            # Rows further down lose their neighbours before any row is left out.
            content = _having(content, detailed=max(int(content.detailed * fits), _WHOLE))
        else:
            n_rows = int(n_rows * fits)
    content = _having(content, train=Examples(), test=Examples())
    shown = data.prepared.shown
    if shown is None or not (shown.train or shown.test) or n_rows == 0:
        return content
    assert content.parts is not None
    return _with_examples(data, model, crossed, content, shown, _ALL_BYTES - written - content.parts.n_bytes)


class _Widest(Mapping[Any, int]):
    """A place for every id, in the most digits, for the bytes of rows before examples are chosen."""

    def __getitem__(self, id_: Any) -> int:
        return 99_999

    def __iter__(self) -> Iterator[Any]:
        return iter(())

    def __len__(self) -> int:
        return 0


_ALL_SHOWN = Examples(places=_Widest())


def _having(content: PageContent, **changes: Any) -> PageContent:
    return PageContent(**{**vars(content), **changes})


def _distribution(p_mislabeled: Any) -> Distribution:
    counts, expected = np.zeros(_BINS), np.zeros(_BINS)
    for rows in blocks(len(p_mislabeled)):
        p = np.asarray(p_mislabeled[rows])
        bins = np.minimum((p * _BINS).astype(int), _BINS - 1)
        counts += np.bincount(bins, minlength=_BINS)
        expected += np.bincount(bins, weights=p, minlength=_BINS)
    return Distribution(counts.astype(int), expected)


def _reviewed(told: Sequence[tuple[float, bool]]) -> list[Reviewed]:
    """What reviewers found, by what they were told; nothing where there are no verdicts."""
    if not told:
        return []
    from scipy.stats import binomtest  # only here: it takes long to import

    p = np.array([probability for probability, _ in told])
    found_wrong = np.array([wrong for _, wrong in told], dtype=bool)
    bins = np.clip(np.searchsorted(_REVIEWED_BINS, p, side="right") - 1, 0, len(_REVIEWED_BINS) - 2)
    found = []
    for number in np.unique(bins):
        inside = bins == number
        rows, wrong = int(inside.sum()), int(np.count_nonzero(found_wrong[inside]))
        ends = binomtest(wrong, rows).proportion_ci(0.95, method="wilson")
        found.append(Reviewed(float(p[inside].mean()), rows, wrong / rows, float(ends.low), float(ends.high)))
    return found


def _groups(data: Data, rows: np.ndarray) -> dict[str, list[str | None]]:
    """Values of the `group_by` columns of some rows, in the order of those."""
    order = np.argsort(rows)
    back = pa.array(np.argsort(order))
    return {
        name: take(column, rows[order]).take(back).to_pylist() if len(rows) else []
        for name, column in zip(data.prepared.config.group_by, data.train_inspection.groups, strict=True)
    }


def _points(crossed: Crossed, suspects: pa.Table) -> dict[Any, Point]:
    if "harmed_test_ids" not in suspects.column_names:
        return {}
    wanted = pc.unique(pc.list_flatten(suspects.column("harmed_test_ids")))
    at = _places(crossed.test_points["id"], wanted)
    chosen = pa.array(at)
    loss = np.asarray(crossed.test_points["loss"])[at]
    columns = [
        pa.array(crossed.test_points[name]).take(chosen).to_pylist()
        for name in ("id", "label", "predicted_label")
    ]
    return {
        id_: Point(label, predicted, float(value))
        for id_, label, predicted, value in zip(*columns, loss.tolist(), strict=True)
    }


def _places(ids: Any, wanted: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Sorted places in a column of ids that hold one of the wanted ones."""
    found = [np.zeros(0, dtype=np.int64)]
    for rows in blocks(len(ids)):
        part = ids[rows]
        inside = pc.is_in(part, value_set=wanted.cast(part.type)).to_numpy(zero_copy_only=False)
        found.append(np.flatnonzero(inside) + rows.start)
    return np.concatenate(found)


# One example, wherever it stands: whether it is a test point, and its id.
_Key = tuple[bool, Any]


def _with_examples(
    data: Data, model: Model, crossed: Crossed, content: PageContent, shown: Shown, budget: int
) -> PageContent:
    """The content with as many examples as there is room for."""
    wanted = _wanted(content.suspects, content.detailed)
    train_ids = pa.array([id_ for test, id_ in wanted if not test], content.suspects.schema.field("id").type)
    train_rows = _places(data.train_inspection.ids, train_ids)
    row_of: dict[_Key, int] = {
        (False, id_): row
        for id_, row in zip(
            take(data.train_inspection.ids, train_rows).to_pylist(), train_rows.tolist(), strict=True
        )
    }
    test_ids = pa.array([id_ for test, id_ in wanted if test], crossed.test_points["id"].type)
    at = _places(crossed.test_points["id"], test_ids)
    test_rows = at if crossed.own_rows is None else crossed.own_rows[at]
    found_ids = crossed.test_points["id"].take(pa.array(at)).to_pylist()
    row_of |= {(True, id_): row for id_, row in zip(found_ids, test_rows.tolist(), strict=True)}
    most = int(_RAW_BYTES / max(row_bytes(data.train, shown.train), 1.0))
    chosen = [key for key in wanted if key in row_of][: max(most, _AT_ONCE)]
    sources = {
        False: _Source(data.train, shown.train, [row_of[key] for key in chosen if not key[0]]),
        True: _Source(data.test or data.train, shown.test, [row_of[key] for key in chosen if key[0]]),
    }
    scale = _scale(model, shown, sources[False].table)
    made: dict[bool, tuple[list[Item], dict[Any, int]]] = {False: ([], {}), True: ([], {})}
    names = _Names(shown)
    budget -= names.n_bytes
    for start in range(0, len(chosen), _AT_ONCE):
        for test, source in sources.items():
            keys = [key for key in chosen[start : start + _AT_ONCE] if key[0] == test]
            if not keys:
                continue
            several, places = made[test]
            for key, item in zip(
                keys, source.items(shown, [row_of[key] for key in keys], scale), strict=True
            ):
                budget -= len(as_json(item).encode()) + 1 + names.use(item)
                if budget >= 0:
                    places[key[1]] = len(several)
                    several.append(item)
        if budget < 0:
            break
    return _having(
        content,
        names=names.used,
        train=Examples(*made[False]),
        test=Examples(*made[True]),
        wanted=len(wanted),
    )


class _Names:
    """Names of cells, those that an example uses: there may be any number of columns."""

    def __init__(self, shown: Shown) -> None:
        self._all = [clipped(name, 80) for name in shown.train] if shown.show.kind == "row" else []
        self.used = [""] * len(self._all)
        self.n_bytes = 3 * len(self._all)

    def use(self, item: Item) -> int:
        """The bytes of the names that this item is the first to use."""
        new = [at for at, *_ in item.get("r", ()) if not self.used[at]]
        for at in new:
            self.used[at] = self._all[at]
        return sum(len(as_json(self.used[at]).encode()) for at in new)


def _wanted(suspects: pa.Table, detailed: int) -> list[_Key]:
    """Examples that rows of the list refer to, the most needed first, each once."""
    own = [(False, id_) for id_ in suspects.column("id").to_pylist()]
    columns = []
    for name in ("nearest_given_ids", "nearest_suggested_ids", "harmed_test_ids"):
        if name in suspects.column_names:
            columns.append((name == "harmed_test_ids", suspects.column(name).to_pylist()))
    related: list[list[_Key]] = [[] for _ in own]
    if "duplicate_id" in suspects.column_names:
        for line, id_ in zip(related, suspects.column("duplicate_id").to_pylist(), strict=True):
            line += [] if id_ is None else [(False, id_)]
    for test, lists in columns:
        for line, ids in zip(related, lists, strict=True):
            line += [(test, id_) for id_ in ids or ()]
    order: list[_Key] = []
    whole = min(_WHOLE, detailed, len(own))
    for number in range(whole):
        order += [own[number], *related[number]]
    order += own[whole:]
    for line in related[whole:detailed]:
        order += line
    return list(dict.fromkeys(order))


class _Source:
    """Raw values of some rows of one set."""

    def __init__(self, dataset: Dataset, names: Sequence[str], rows: Sequence[int]) -> None:
        self._names = names
        self._rows = np.unique(np.asarray(rows, dtype=np.int64))
        self.table: pa.Table | None = None
        if self._rows.size and names:
            self.table, self._folders = read_shown(dataset, names, self._rows)

    def items(self, shown: Shown, rows: Sequence[int], scale: Scale) -> list[Item]:
        if self.table is None:
            return [{"k": "e", "s": "nothing to show: set report.show in the config"} for _ in rows]
        at = np.searchsorted(self._rows, rows)
        folders = [self._folders[i] for i in at.tolist()]
        return items(shown, self.table.take(pa.array(at)), self._names, folders, scale)


def _scale(model: Model, shown: Shown, table: pa.Table | None) -> Scale:
    if table is None:
        return Scale()
    steps = model.objective.dataset.steps
    own = shown.train[shown.others :] == model.objective.dataset.columns.features
    if own and steps and steps[0].kind == "standardize":
        arrays = model.arrays_of(steps[0])
        return scale_of(shown, table, arrays["mean"], arrays["scale"])
    return scale_of(shown, table, None, None)
