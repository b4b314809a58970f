"""Config files as plain data: YAML, and what overrides it; nothing of what the keys mean."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from influence_batch.errors import InputError
from influence_batch.redaction import redacted


def plain(value: Any) -> Any:
    """Mappings and lists as dict and list, paths as strings."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value} stands twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The content of a YAML file.

    Raises:
        InputError: it cannot be read, or is no mapping.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected the path of a YAML config") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); expected a YAML config") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        problem = getattr(error, "problem", None) or "not readable"
        raise InputError(f"{path}: {where}not valid YAML ({problem})") from None
    if not isinstance(content, dict):
        found = "nothing" if content is None else type(content).__name__
        raise InputError(f"{path}: found {found}; expected keys such as `train:` and `model:`")
    read: dict[str, Any] = plain(content)
    return read


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set the key of `key.key=value`, the value read as YAML.

    Raises:
        InputError: it is no such pair, or there is no such place.
    """
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise InputError(f"--set {override}: expected KEY=VALUE, such as model.l2=1e-4")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: {text!r} is not a YAML value") from None
    *parents, last = key.split(".")
    section = content
    for parent in parents:
        inner = section.get(parent)
        if inner is None:
            inner = section[parent] = {}
        elif not isinstance(inner, dict):
            raise InputError(f"--set {override}: {parent} has no keys of its own, it is {inner!r}")
        section = inner
    section[last] = value


def apply_settings(content: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Set keys, and keys of sections, to the values of a mapping that is laid out as a config is."""
    for key, value in settings.items():
        if not isinstance(value, Mapping):
            content[key] = value
            continue
        section = content.get(key)
        if isinstance(section, str):
            section = {"kind": section}  # a section that is its kind alone
        content[key] = dict(section) if isinstance(section, Mapping) else {}
        apply_settings(content[key], value)


def check_place(reports: str) -> None:
    """Refuse what cannot be the folder of reports, as it is written.

    Raises:
        InputError: it is a URL that pathlib has been through, or that has a secret in it.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)", reports):
        raise InputError(
            f"reports: found {reports}; accepted: a URL with two slashes (pathlib keeps one: give it as text)"
        )
    # It stands in all that names a report.
    if redacted(reports) != reports:
        raise InputError(
            f"reports: found {reports}, with a secret in it; accepted: a URL without one (fsspec reads "
            "secrets from the environment, such as FSSPEC_FTP_PASSWORD)"
        )
