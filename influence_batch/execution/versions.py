"""The packages of a cluster against those of this process."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from influence_batch.errors import ClusterError

if TYPE_CHECKING:
    from distributed import Client

_logger = logging.getLogger("influence_batch")

_OURS = "influence_batch"
# What is sent between processes is made by these, and they promise nothing between versions.
_SAME = ("python", "dask", "distributed", _OURS)
_COMPARED = (*_SAME, "numpy", "scipy", "pandas", "pyarrow")


def check_scheduler(client: Client) -> None:
    """Compare the scheduler's packages with those of this process.

    Raises:
        ClusterError: as for workers.
    """
    asked = _asked(client)
    _compare(_packages(asked["client"]), _packages(asked["scheduler"]), "the scheduler", True)


def check_workers(client: Client, workers: Collection[str]) -> None:
    """Compare the packages of workers, given by their addresses, with those of this process.

    Raises:
        ClusterError: python (major.minor), dask, distributed or this package differ, or it is missing there.
            Differences in other packages are logged.
    """
    asked = _asked(client)
    here = _packages(asked["client"])
    for address, answer in sorted(asked["workers"].items()):
        # A worker that died meanwhile has no answer.
        if address in workers and isinstance(answer, Mapping):
            there = _packages(answer)
            if there[_OURS] is None and _importable(client, address):
                # Found on PYTHONPATH: code without a version is taken on trust.
                there[_OURS] = here[_OURS]
            _compare(here, there, f"the worker {address}", False)


def _asked(client: Client) -> Any:
    return client.get_versions(packages=list(_COMPARED[1:]))


def _packages(answer: Mapping[str, Any]) -> dict[str, str | None]:
    found = {name: answer["packages"].get(name) for name in _COMPARED}
    return {**found, "python": ".".join(str(found["python"]).split(".")[:2])}


def _importable(client: Client, address: str) -> bool:
    answer = client.run(importlib.util.find_spec, _OURS, workers=[address], on_error="return")
    return answer.get(address) is not None and not isinstance(answer[address], BaseException)


def _compare(
    here: Mapping[str, str | None], there: Mapping[str, str | None], where: str, scheduler: bool
) -> None:
    if there[_OURS] is None:
        raise ClusterError(
            f"cluster: {where} has no {_OURS}; install {_OURS} {here[_OURS] or ''}".rstrip()
            + " and its dependencies in the environment of the scheduler and of every worker"
        )
    # A scheduler unpacks tasks, so it needs this package, but it computes nothing.
    for name in _SAME if scheduler else _COMPARED:
        if here[name] == there[name] or (name == _OURS and here[name] is None):
            continue
        found = f"{where} has {name} {there[name] or '(none)'}, this process has {here[name] or '(none)'}"
        if name in _SAME:
            raise ClusterError(
                f"cluster: {found}; they must be the same: install {name} {here[name]} there, or run the "
                "audit in the environment of the cluster"
            )
        _logger.warning("cluster: %s; results may differ in the last digits", found)
