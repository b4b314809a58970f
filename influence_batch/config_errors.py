"""What pydantic finds wrong with a config, in the user's words."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from datetime import date
from typing import Any

from pydantic import BaseModel


def told(error: Any, root: type[BaseModel]) -> tuple[str, str]:
    """One pydantic error in the user's words: its key, and key, what was found, what is accepted."""
    section, keys, field, kinds = _locate(error["loc"], root)
    key = ".".join(keys)
    found = _shown(error["input"])
    accepted = field.description if field is not None and field.description else error["msg"]
    if error["type"] == "extra_forbidden":
        known = _keys(section) if section else []
        near = difflib.get_close_matches(keys[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`? " if near else ""
        return key, f"{key}: unknown key; {hint}known keys: {', '.join(known)}"
    if error["type"] == "missing":
        return key, f"{key}: missing; this key has no default; accepted: {accepted}"
    if kinds and error["type"] in ("model_type", "model_attributes_type", "union_tag_not_found"):
        return key, f"{key}: found {found}; accepted: a mapping with `kind`: {', '.join(kinds)}"
    if section and error["type"] in ("model_type", "model_attributes_type"):
        return (
            key,
            f"{key}: found {found}; accepted: a mapping with the keys {', '.join(_keys(section))}",
        )
    if error["type"] == "union_tag_invalid":
        tag = str(error["ctx"]["tag"])
        near = difflib.get_close_matches(tag, kinds, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        # A feature step is mostly written as its name alone.
        part = key if key.endswith("]") else f"{key}.kind"
        return key, f"{part}: found {tag!r}{hint}; accepted: {', '.join(kinds)}"
    if error["type"] == "string_type" and not isinstance(error["input"], (list, dict, type(None))):
        return key, f"{key}: found {found}, which is no text without quotes; accepted: {accepted}"
    return key, f"{key}: found {found}; accepted: {accepted}"


def _shown(value: Any) -> str:
    """A value as YAML has it, near enough."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, date) else repr(value)


def _locate(
    loc: Sequence[str | int], root: type[BaseModel]
) -> tuple[type[BaseModel] | None, list[str], Any, list[str]]:
    """The section an error stands in, its key as the user wrote it, its field, the kinds it may have."""
    section: type[BaseModel] | None = root
    keys: list[str] = []
    field: Any = None
    options: list[type[BaseModel]] = []
    for part in loc:
        tagged = [s for s in options if s.model_fields["kind"].default == part]
        if tagged:
            section, options, field = tagged[0], [], None
            continue
        if isinstance(part, int):
            keys = [*keys[:-1], f"{keys[-1]}[{part}]"]
            continue
        fields = _keys(section) if section else {}
        if str(part) not in fields:
            # Inside a union pydantic names the member type, which is none of the user's keys.
            if part not in ("str", "int", "float", "bool") and not any(mark in part for mark in "[(-"):
                keys.append(str(part))
            continue
        keys.append(str(part))
        field = fields[str(part)]
        options = _sections_in(field.annotation)
        if len(options) == 1:
            section, options = options[0], []
        elif options:
            section = None
    return section, keys, field, [str(option.model_fields["kind"].default) for option in options]


def _keys(section: type[BaseModel]) -> dict[str, Any]:
    """The fields of a section by the keys that users write."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def _sections_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is not None:
        return [section for part in typing.get_args(annotation) for section in _sections_in(part)]
    return []
