"""What tests of the command line share."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of commands. Prefect takes ten seconds to make a database: a test process makes one for all."""
    return {**os.environ, "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect"))}
