"""The config's own keys as the flow's parameter `settings`, which the form of a run in Prefect's UI shows."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from influence_batch.config import AuditConfig, load_config

_LOG = logging.getLogger("influence_batch")

# What a form has an entry for: no paths, columns or lists, which `overrides` can change. So the audit's name,
# its reports and whom it notifies are no settings: the hooks of a run find them without a server to ask.
_SIMPLE = {"integer", "number", "boolean", "null"}
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
_UNITS = {"GiB": 2**30, "GB": 10**9, "MiB": 2**20, "MB": 10**6, "KiB": 2**10, "KB": 10**3, "B": 1}


def settings_schema(config: AuditConfig) -> dict[str, Any]:
    """The keys of the config that are numbers, truth values or choices, as a JSON schema.

    It is made of the schema of the config file, so that ranges and descriptions are the file's; the
    defaults are what the config has.
    """
    schema = AuditConfig.model_json_schema()
    settings = _section(schema, schema["$defs"], settings_of(config))
    settings["title"] = "settings"
    settings["description"] = (
        "Keys of the config to change for this run. Those left as the deployment has them are read from the "
        "config, anew for each run; `overrides` go on top."
    )
    return settings


def settings_of(config: AuditConfig) -> dict[str, Any]:
    """The values that the config has for the keys of `settings_schema`."""
    schema = AuditConfig.model_json_schema()
    return _values(config.model_dump(mode="json"), _section(schema, schema["$defs"], {}))


def _section(schema: Mapping[str, Any], definitions: Mapping[str, Any], values: Any) -> dict[str, Any]:
    """A section in a form: for each simple key an entry, for each section with such keys a group."""
    entries: dict[str, Any] = {}
    for name, given in schema["properties"].items():
        entry = _resolved(given, definitions)
        value = values.get(name) if isinstance(values, Mapping) else None
        if name == "memory_limit":
            entry = {"type": "string", "description": entry["description"]}
        elif "properties" in entry:
            entry = _section(entry, definitions, value)
            if not set(entry["properties"]) - {"kind"}:  # what the kind needs has no entry
                continue
        elif not _is_simple(entry):
            continue
        entries[name] = {**_bounded(entry), "default": value, "title": name, "position": len(entries)}
    return {"type": "object", "properties": entries, "additionalProperties": False}


def _resolved(entry: Mapping[str, Any], definitions: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of a JSON schema in place; of sections that are told apart by `kind`, what all have."""
    if "$ref" in entry:
        entry = {**definitions[entry["$ref"].rpartition("/")[2]], **entry}
    kinds = entry.get("discriminator", {}).get("mapping")
    if kinds is None:
        return dict(entry)
    sections = [definitions[reference.rpartition("/")[2]]["properties"] for reference in kinds.values()]
    common = {name: item for name, item in sections[0].items() if all(name in other for other in sections)}
    kind = {"type": "string", "enum": list(kinds), "description": ", ".join(kinds)}
    return {"properties": {**common, "kind": kind}}


def _bounded(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry, its bounds as JSON schema names them: pydantic does not where another check is first."""
    found = {_BOUNDS.get(key, key): item for key, item in entry.items()}
    if "anyOf" in found:
        found["anyOf"] = [_bounded(member) for member in found["anyOf"]]
    return found


def _is_simple(entry: Mapping[str, Any]) -> bool:
    members = entry.get("anyOf", [entry])
    return all("enum" in item or "const" in item or item.get("type") in _SIMPLE for item in members)


def _values(content: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, entry in section["properties"].items():
        if "properties" in entry:
            found[name] = _values(content[name], entry)
        else:
            found[name] = _size(content[name]) if name == "memory_limit" else content[name]
    return found


def _size(size: int) -> str:
    """A number of bytes as people write it, exactly."""
    exact = [f"{size // unit}{name}" for name, unit in _UNITS.items() if size % unit == 0]
    return min(exact, key=len)


def config_of(parameters: Mapping[str, Any], deployment: Any = None) -> AuditConfig:
    """The config that the parameters of a flow run describe.

    Args:
        parameters: as the flow has them.
        deployment: id of the deployment whose run it is; None for a run without one.

    Raises:
        InputError: with every problem found.
        KeyError: there is no parameter `config`.
    """
    settings, overrides = parameters.get("settings") or {}, parameters.get("overrides") or ()
    if settings and deployment is not None:
        settings = _changed(settings, _deployed(deployment))
    for key in _keys(settings):
        if any(override.partition("=")[0] == key for override in overrides):
            _LOG.warning("settings: %s is changed, but overrides set it too, which go on top", key)
    return load_config(parameters["config"], overrides, parameters.get("reports"), settings)


def _deployed(deployment: Any) -> dict[str, Any]:
    """The settings that a deployment begins its runs with."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            found: dict[str, Any] = client.read_deployment(deployment).parameters.get("settings") or {}
        except ObjectNotFound:  # deleted since
            return {}
    return found


def _changed(settings: Mapping[str, Any], deployed: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not as deployed.

    A form gives back all that it shows. What was left alone may be out of date: the config file is read anew.
    """
    changed = {}
    for key, value in settings.items():
        before = deployed.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            if inner := _changed(value, before):
                changed[key] = inner
        elif key not in deployed or value != before:
            changed[key] = value
    return changed


def _keys(settings: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key, value in settings.items():
        found += _keys(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [f"{prefix}{key}"]
    return found
