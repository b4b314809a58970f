"""Who may import whom, and what stands where."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import influence_batch

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = [
    "influence_batch",
    *(
        f"influence_batch.{module.name}"
        for module in pkgutil.iter_modules(influence_batch.__path__)
        if module.ispkg
    ),
]


def test_imports_follow_the_contracts() -> None:
    """The contracts stand in pyproject.toml, under [tool.importlinter]."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "0 broken" in result.stdout


@pytest.mark.parametrize("name", PACKAGES)
def test_exports_exist(name: str) -> None:
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", [])
    assert sorted(exported) == sorted(set(exported))
    for item in exported:
        assert hasattr(module, item)


def test_library_runs_without_prefect(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['prefect'] = None; sys.modules['click'] = None; sys.modules['rich'] = None\n"
        "import influence_batch"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr


def test_no_file_grows_beyond_a_readers_patience() -> None:
    for folder in ("influence_batch", "flows", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            assert len(path.read_text(encoding="utf-8").splitlines()) <= 500, path
