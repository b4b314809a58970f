"""A profile: what is counted is what was done, and an audit with one is the same audit."""

from __future__ import annotations

import importlib
import pkgutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import influence_batch
from flows.profiling import print_profile
from influence_batch import profile as profile_module
from influence_batch.profile import measure_rates
from tests import planted

N, D, K, M = 200, 5, 3, 10  # with the intercept's column


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    frame = planted.make(N)
    planted.spoil(frame, [3, 50, 120])
    planted.save(frame, folder)
    return folder


@pytest.fixture(scope="module")
def profiled(folder: Path) -> influence_batch.Report:
    settings: dict[str, Any] = {"name": "profiled", "solver": {"kind": "direct"}}
    return influence_batch.audit(planted.config(folder, **settings), profile=True)


def stages(report: influence_batch.Report) -> dict[str, dict[str, Any]]:
    return {stage["name"]: stage for stage in report.run["profile"]["stages"]}


def test_an_audit_with_a_profile_is_the_same_audit(folder: Path, profiled: influence_batch.Report) -> None:
    plain = influence_batch.audit(planted.config(folder, name="plain", solver={"kind": "direct"}))
    assert "profile" not in plain.run
    pd.testing.assert_frame_equal(plain.examples, profiled.examples)
    pd.testing.assert_frame_equal(plain.cross_influence, profiled.cross_influence)
    pd.testing.assert_frame_equal(plain.test_points, profiled.test_points)


def test_every_stage_has_its_seconds_and_memory(profiled: influence_batch.Report) -> None:
    found = stages(profiled)
    assert list(found) == list(profiled.run["seconds"])
    for name, stage in found.items():
        assert stage["seconds"] == profiled.run["seconds"][name]
        # An interpreter with numpy and pyarrow takes more than 50 MB; getrusage saw the most there ever was.
        assert 50e6 < stage["peak_memory_bytes"] <= 1.02 * profiled.run["peak_memory_bytes"]
    assert profiled.run["profile"]["memory_of"] == "this process"


def test_counted_is_what_was_done(profiled: influence_batch.Report) -> None:
    """By hand: a Hessian, leverages and an inverse; products for 10 points, their solve, and a mean."""
    found = stages(profiled)
    p = K * D
    pairs = K * (K - 1) / 2
    hessian = N * D**2 * pairs + 2 * N * D * K + p**3 / 3
    leverages = pairs * N * D**2 * 2 + 4 * N * D * K + 2 * p**3 / 3
    assert found["influence"]["flops_float64"] == pytest.approx(hessian + leverages)
    assert found["influence"]["passes"] == 2
    cross = found["cross_influence"]
    # Norms that bound influences, and the products of the pairs that these leave.
    pairs = (cross["flops_float32"] - 2 * N * D**2) / (2 * (K - 1) * D)
    assert pairs == pytest.approx(round(pairs))
    assert M * 10 <= pairs <= N * M
    assert cross["flops_float64"] == pytest.approx(4 * p**2 * M + 2 * N * D * K)
    for stage in found.values():
        flops = stage["flops_float64"] + stage["flops_float32"]
        assert stage["flops_per_second"] == pytest.approx(flops / stage["seconds"], rel=0.05)
        if flops:
            rates = profiled.run["profile"]["rates"]
            at_full_rate = (
                stage["flops_float64"] / rates["float64"] + stage["flops_float32"] / rates["float32"]
            )
            expected = at_full_rate / stage["seconds"]
            assert stage["share_of_rate"] == pytest.approx(expected, rel=0.05, abs=1e-4)
        else:
            assert stage["share_of_rate"] is None


def test_what_is_not_counted_is_named(profiled: influence_batch.Report) -> None:
    found = stages(profiled)
    assert found["fit"]["not_counted"] == []
    assert found["influence"]["not_counted"] == []
    assert found["cross_influence"]["not_counted"] == []
    assert "nearest" in found["evidence"]["not_counted"]


def test_every_formula_is_that_of_a_function() -> None:
    names: set[str] = set()
    for info in pkgutil.walk_packages(influence_batch.__path__, "influence_batch."):
        names |= set(vars(importlib.import_module(info.name)))
    assert set(profile_module._FORMULAS) <= names


def test_on_a_cluster_memory_is_said_to_be_of_this_process(
    folder: Path, profiled: influence_batch.Report
) -> None:
    settings = {"solver": {"kind": "direct"}, "cluster": {"kind": "local", "workers": 1}}
    found = influence_batch.audit(planted.config(folder, name="workers", **settings), profile=True)
    assert found.run["profile"]["memory_of"] == "this process; that of workers is not known"
    assert found.run["profile"]["rates"]["threads"] == 1
    for name in ("influence", "cross_influence"):
        for column in ("flops_float64", "flops_float32", "passes"):
            assert stages(found)[name][column] == pytest.approx(stages(profiled)[name][column])


def test_rates_are_those_of_this_machine() -> None:
    rates = measure_rates(1)
    assert rates.threads == 1
    size = 600
    a = np.random.default_rng(0).standard_normal((size, size))
    best = min(_seconds(a) for _ in range(20))
    # Other work on the machine slows either down, and small products are slower than large ones.
    assert rates.float64 > 0.1 * 2 * size**3 / best
    assert rates.float64 < 1e12
    assert rates.float32 > rates.float64


def _seconds(a: np.ndarray) -> float:
    start = time.perf_counter()
    a @ a
    return time.perf_counter() - start


def test_the_table_has_every_stage(
    profiled: influence_batch.Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    print_profile(profiled.run_dir)
    printed = capsys.readouterr().out
    for name, stage in stages(profiled).items():
        [line] = [line for line in printed.splitlines() if f" {name} " in line]
        assert f"{stage['seconds']:.2f}" in line
    assert "GF/s in float64" in printed
    assert "counted: products of matrices" in printed


def test_products_of_float32_count_as_such(folder: Path) -> None:
    settings = {"solver": {"kind": "direct", "precision": "float32"}}
    found = stages(influence_batch.audit(planted.config(folder, name="single", **settings), profile=True))
    pairs = K * (K - 1) / 2
    # Of leverages with one slice of columns; the Hessian that test points are solved for with is of float64.
    assert found["influence"]["flops_float32"] == pytest.approx(2 * pairs * N * D**2)
    assert found["influence"]["flops_float64"] == pytest.approx(
        pairs * N * D**2 + 6 * N * D * K + (K * D) ** 3
    )
