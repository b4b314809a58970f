"""Which columns are id, label and features, and what the schema says of them."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.types as pt

from influence_batch.dataset.files import ParquetFileInfo
from influence_batch.errors import InputError

_NUMERIC = "integers, floats or booleans"


@dataclass(frozen=True)
class Columns:
    """The columns of a dataset that an audit reads.

    Attributes:
        id: name of the id column, None where the row number serves.
        label: name of the label column.
        features: names of the numeric columns, or of the one list column.
        embedding: whether `features` is one list column.
        label_type, id_type: Arrow types, dictionaries decoded.
        groups: names of the columns that rows are grouped by.
    """

    id: str | None
    label: str
    features: tuple[str, ...]
    embedding: bool
    label_type: pa.DataType
    id_type: pa.DataType
    groups: tuple[str, ...] = ()

    @property
    def label_kind(self) -> Literal["integer", "float", "string", "boolean"]:
        if pt.is_boolean(self.label_type):
            return "boolean"
        if pt.is_integer(self.label_type):
            return "integer"
        return "float" if is_number(self.label_type) else "string"


def value_type(type_: pa.DataType) -> pa.DataType:
    """The type of a column's values, dictionaries (pandas categoricals) decoded."""
    return type_.value_type if pt.is_dictionary(type_) else type_


def is_number(type_: pa.DataType) -> bool:
    return pt.is_integer(type_) or pt.is_floating(type_) or pt.is_decimal(type_)


def is_text(type_: pa.DataType) -> bool:
    return pt.is_string(type_) or pt.is_large_string(type_) or pt.is_string_view(type_)


def is_list(type_: pa.DataType) -> bool:
    return pt.is_list(type_) or pt.is_large_list(type_) or pt.is_fixed_size_list(type_)


def _is_feature(type_: pa.DataType) -> bool:
    return is_number(type_) or pt.is_boolean(type_)


def resolve_columns(
    files: Sequence[ParquetFileInfo],
    key: str,
    *,
    id: str | None,
    label: str,
    features: str | Sequence[str] | None,
    groups: Sequence[str] = (),
) -> Columns:
    """Find the columns a source asks for and check their types in every file.

    Args:
        files: footers of the dataset's files.
        key: `train` or `test`, for messages.
        id, label, features: as in the config.
        groups: `group_by` in the config.

    Raises:
        InputError: a column that is absent, a pattern that matches nothing, a type that does not fit,
            files whose columns differ.
    """
    first = files[0]
    schema = first.schema
    where = first.path
    for name, part in ((label, "label"), (id, "id")):
        if name is not None:
            require_column(schema, name, f"{key}.{part}", where)
    for name in groups:
        _check_group(schema, name, where)
    names = _feature_names(schema, key, where, {id, label, *groups}, label, features)
    for name in names:
        require_column(schema, name, f"{key}.features", where)
    lists = [name for name in names if is_list(schema.field(name).type)]
    if lists and len(names) > 1:
        raise InputError(
            f"{key}.features: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''} mix the list column "
            f"{lists[0]} with others in {where}; accepted: one list column, or numeric columns"
        )
    for name in names:
        _check_feature(schema.field(name), key, where)
    label_type = value_type(schema.field(label).type)
    if not (is_number(label_type) or is_text(label_type) or pt.is_boolean(label_type)):
        raise InputError(
            f"{key}.label: column {label} of {where} is {label_type}; "
            "accepted: integers, strings, booleans, categoricals, or numbers for regression"
        )
    id_type = pa.int64() if id is None else value_type(schema.field(id).type)
    if not (pt.is_integer(id_type) or is_text(id_type)):
        raise InputError(f"{key}.id: column {id} of {where} is {id_type}; accepted: integers or strings")
    if id == label:
        raise InputError(f"{key}.id: found {id}, which is the label column; expected another column")
    needed = [(id, "id"), (label, "label"), *((name, "features") for name in names)]
    for file in files[1:]:
        for name in groups:
            _check_group(file.schema, name, file.path)
        for name, part in needed:
            if name is None:
                continue
            if name not in file.schema.names:
                raise InputError(
                    f"{key}.{part}: column {name} is in {where} and not in {file.path}; "
                    "expected it in all files"
                )
            require_column(file.schema, name, f"{key}.{part}", file.path)
            one, other = value_type(schema.field(name).type), value_type(file.schema.field(name).type)
            if not (
                _same_numbers(one, other) if part == "features" else storage_type(one) == storage_type(other)
            ):
                raise InputError(
                    f"{key}.{part}: column {name} is {one} in {where} and {other} in {file.path}; "
                    "expected one type in all files"
                )
    return Columns(id, label, tuple(names), bool(lists), label_type, id_type, tuple(groups))


def storage_type(type_: pa.DataType) -> pa.DataType:
    """The type that ids and labels of a column have once read: one for all of its kin."""
    if pt.is_integer(type_) and not pt.is_uint64(type_):
        return pa.int64()
    if is_text(type_):
        return pa.string()
    if pt.is_floating(type_) or pt.is_decimal(type_):
        return pa.float64()
    return type_


def _check_group(schema: pa.Schema, name: str, where: str) -> None:
    require_column(schema, name, "group_by", where)
    type_ = value_type(schema.field(name).type)
    if not (pt.is_integer(type_) or is_text(type_) or pt.is_boolean(type_)):
        raise InputError(
            f"group_by: column {name} of {where} is {type_}; accepted: strings, integers, booleans or "
            "categoricals"
        )


def _same_numbers(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether features of these types can stand in one column: all numbers are read as float64."""
    if is_list(one) and is_list(other):
        return _is_feature(one.value_type) and _is_feature(other.value_type)
    return _is_feature(one) and _is_feature(other)


def require_column(schema: pa.Schema, name: str, key: str, where: str) -> None:
    """Refuse a name that is not that of one column.

    Raises:
        InputError: with the nearest name.
    """
    count = schema.names.count(name)
    if count == 0:
        near = difflib.get_close_matches(name, schema.names, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError(
            f"{key}: column {name} is not in {where}; {hint}its columns: {_listed(schema.names)}"
        )
    if count > 1:
        raise InputError(f"{key}: {where} has {count} columns named {name}; expected one")


def _listed(names: Sequence[str], most: int = 12) -> str:
    rest = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _feature_names(
    schema: pa.Schema,
    key: str,
    where: str,
    taken: set[str | None],
    label: str,
    features: str | Sequence[str] | None,
) -> list[str]:
    index = _pandas_index(schema)
    if features is None:
        others = [field for field in schema if field.name not in taken | index]
        lists = [f.name for f in others if is_list(f.type) and _is_feature(f.type.value_type)]
        numeric = [f.name for f in others if _is_feature(f.type)]
        names = lists if len(lists) == 1 else numeric
        if not names and lists:
            raise InputError(
                f"{key}.features: {where} has {len(lists)} list columns ({_listed(lists)}); "
                "expected the name of one of them"
            )
        if not names:
            raise InputError(
                f"{key}.features: {where} has no numeric column beside id and label; "
                f"its columns: {_listed(schema.names)}"
            )
        return names
    names = []
    for pattern in [features] if isinstance(features, str) else features:
        if any(mark in pattern for mark in "*?[") and pattern not in schema.names:
            matched = [
                name
                for name in fnmatch.filter(schema.names, pattern)
                if name not in taken | index and name not in names
            ]
            if not matched:
                raise InputError(
                    f"{key}.features: the pattern {pattern} matches no column of {where}; "
                    f"its columns: {_listed(schema.names)}"
                )
            names += matched
        else:
            require_column(schema, pattern, f"{key}.features", where)
            if pattern in taken:
                role = "the label column" if pattern == label else "an id or group_by column"
                raise InputError(
                    f"{key}.features: {pattern} is already {role} of {where}; "
                    "accepted: the columns beside id and label"
                )
            if pattern not in names:
                names.append(pattern)
    if not names:
        raise InputError(f"{key}.features: found an empty list; expected a name, a list of names or patterns")
    return names


def matching_columns(schema: pa.Schema, patterns: Sequence[str], key: str, where: str) -> tuple[str, ...]:
    """The columns that names and patterns name, each once.

    Raises:
        InputError: a name that is absent, a pattern that matches nothing, no names at all.
    """
    names: list[str] = []
    for pattern in patterns:
        if any(mark in pattern for mark in "*?[") and pattern not in schema.names:
            matched = fnmatch.filter(schema.names, pattern)
            if not matched:
                raise InputError(
                    f"{key}: the pattern {pattern} matches no column of {where}; "
                    f"its columns: {_listed(schema.names)}"
                )
            names += matched
        else:
            require_column(schema, pattern, key, where)
            names.append(pattern)
    if not names:
        raise InputError(f"{key}: found an empty list; expected a name, a list of names or patterns")
    return tuple(dict.fromkeys(names))


def _pandas_index(schema: pa.Schema) -> set[str]:
    """Columns in which pandas kept the index of a frame: row numbers, which are no features."""
    metadata = schema.pandas_metadata or {}
    return {name for name in metadata.get("index_columns", ()) if isinstance(name, str)}


def _check_feature(field: pa.Field, key: str, where: str) -> None:
    type_ = field.type
    if is_list(type_):
        if pt.is_fixed_size_list(type_) and type_.list_size == 0:
            raise InputError(
                f"{key}.features: column {field.name} of {where} has lists of 0 numbers; "
                "expected at least one in each"
            )
        if not _is_feature(type_.value_type):
            raise InputError(
                f"{key}.features: column {field.name} of {where} is {type_}; accepted: lists of {_NUMERIC}"
            )
    elif not _is_feature(type_):
        raise InputError(
            f"{key}.features: column {field.name} of {where} is {type_}, which is not numeric; "
            f"accepted: {_NUMERIC}, or one list column of them"
        )


def check_comparable(train: Columns, test: Columns) -> None:
    """Refuse a test set whose labels or ids are of another kind, or whose features are not train's.

    Raises:
        InputError: naming the columns that differ.
    """
    kinds = {train.label_kind, test.label_kind}
    if len(kinds) > 1 and kinds != {"integer", "float"}:
        raise InputError(
            f"test.label: column {test.label} is {test.label_type}, train's is {train.label_type}; "
            "expected the same type in both"
        )
    # Reports have ids of both sets in columns of train's type. Row numbers fit into any.
    if test.id is not None and storage_type(train.id_type) != storage_type(test.id_type):
        own = "row numbers" if train.id is None else str(train.id_type)
        raise InputError(
            f"test.id: column {test.id} is {test.id_type}, train's ids are {own}; "
            "expected the same type in both"
        )
    if train.embedding != test.embedding:
        forms = [
            "one list column" if c.embedding else f"{len(c.features)} numeric columns" for c in (train, test)
        ]
        raise InputError(
            f"test.features: train has {forms[0]} and test {forms[1]}; expected the same in both"
        )
    if train.embedding or set(train.features) == set(test.features):
        return
    missing = [name for name in train.features if name not in test.features]
    extra = [name for name in test.features if name not in train.features]
    parts = []
    if missing:
        parts.append(f"{len(missing)} of train's are not in test ({_listed(missing, 5)})")
    if extra:
        parts.append(f"{len(extra)} are only in test ({_listed(extra, 5)})")
    raise InputError(
        f"test.features: {' and '.join(parts)}; expected the {len(train.features)} columns of train"
    )
