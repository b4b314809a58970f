"""What tests of the command line share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.flows.servers import Server, prefect_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for each process of tests: Prefect takes long to start one."""
    with prefect_server(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(scope="session")
def environment(server: Server) -> dict[str, str]:
    """Of commands whose test is not about the server that a run starts for itself where it finds none."""
    return server.env


@pytest.fixture(scope="session")
def serverless(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Of commands that find no server. Prefect takes ten seconds to make a database: one for all of them."""
    return {**os.environ, "PREFECT_HOME": str(tmp_path_factory.mktemp("prefect"))}
