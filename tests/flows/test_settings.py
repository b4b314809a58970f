"""The config's keys as a parameter of the flow. In a deployment of a real server: `test_work_pool.py`."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import settings as module
from flows.settings import config_of, settings_of, settings_schema
from influence_batch.config import load_config
from influence_batch.errors import InputError

CONFIG = {
    "train": {"path": "train.parquet", "label": "y"},
    "solver": "cg",
    "detection": {"budget": 40},
    "memory_limit": "500MB",
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "night.yaml"
    path.write_text(yaml.safe_dump(CONFIG))
    return path


def leaves(entry: dict[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    found = {}
    for name, item in entry["properties"].items():
        inner = leaves(item, f"{prefix}{name}.") if "properties" in item else {f"{prefix}{name}": item}
        found.update(inner)
    return found


def test_the_form_has_the_keys_of_the_config_with_its_values(file: Path) -> None:
    entries = leaves(settings_schema(load_config(file)))
    assert all(entry["description"] for entry in entries.values())
    defaults = {name: entry["default"] for name, entry in entries.items()}
    expected = {
        "detection.budget": 40,
        "detection.threshold": 0.33,
        "detection.target_precision": None,
        "model.l2": 0.001,
        "solver.kind": "cg",
        "gates.class_rate_jump": None,
        "report.page": True,
        "memory_limit": "500MB",
        "keep": None,
        "seed": 0,
    }
    assert {name: defaults[name] for name in expected} == expected
    assert entries["solver.kind"]["enum"] == ["auto", "cg", "direct", "ekfac", "lissa"]
    assert entries["detection.budget"]["anyOf"] == [{"minimum": 1, "type": "integer"}, {"type": "null"}]
    # Paths count from the config's folder, and what a kind of cluster needs is no number.
    assert not [name for name in entries if name.split(".")[0] in ("train", "test", "reports", "cluster")]


def test_every_value_is_one_that_the_config_takes(file: Path) -> None:
    config = load_config(file)
    assert config_of({"config": str(file), "settings": settings_of(config)}) == config


def test_a_changed_setting_counts_and_overrides_go_on_top(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"model": {"l2": 0.1}, "solver": {"rtol": 1e-6}, "detection": {"budget": None}}
    settings["memory_limit"] = "1GiB"
    with caplog.at_level(logging.WARNING):
        found = config_of({"config": str(file), "settings": settings, "overrides": ["model.l2=0.2"]})
    assert found.model.l2 == 0.2
    assert "settings: model.l2 is changed, but overrides set it too" in caplog.text
    assert (found.solver.kind, found.solver.rtol) == ("cg", 1e-6)
    assert (found.detection.budget, found.memory_limit) == (None, 2**30)


def test_settings_left_alone_are_read_from_the_config_anew(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A form gives back every value that it shows, as old as the deployment."""
    deployed = settings_of(load_config(file))
    monkeypatch.setattr(module, "_deployed", lambda deployment: deployed)
    file.write_text(yaml.safe_dump({**CONFIG, "detection": {"target_precision": 0.9}}))
    changed = {**deployed, "model": {**deployed["model"], "l2": 0.1}}
    found = config_of({"config": str(file), "settings": changed}, "a deployment")
    assert found == load_config(file, ["model.l2=0.1"])


@pytest.mark.parametrize(
    ("settings", "override"),
    [
        ({"detection": {"budget": 0}}, "detection.budget=0"),
        ({"detection": {"target_precision": 0.5}}, "detection.target_precision=0.5"),
        ({"solver": {"kind": "cgs"}}, "solver={kind: cgs}"),
        ({"memory_limit": "much"}, "memory_limit=much"),
        ({"detektion": {"budget": 3}}, "detektion.budget=3"),
    ],
)
def test_a_bad_setting_is_told_as_one_in_the_file(
    file: Path, settings: dict[str, Any], override: str
) -> None:
    with pytest.raises(InputError) as expected:
        load_config(file, [override])
    with pytest.raises(InputError) as caught:
        config_of({"config": str(file), "settings": settings})
    assert str(caught.value) == str(expected.value)
    assert str(caught.value).startswith(f"{file}: ")
