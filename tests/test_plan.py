"""The plan: the numbers an audit decides by, what it refuses, and that small memory changes nothing."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import influence_batch
from influence_batch import needs as needs_module
from influence_batch.config import LocalCluster, load_config
from influence_batch.errors import InputError, RunError
from influence_batch.execution import open_executor
from influence_batch.models import quadratic_forms
from influence_batch.models.losses import Softmax, Squared
from influence_batch.plan import Plan
from influence_batch.preparation import plan_audit, prepare
from influence_batch.record import _without_secrets
from influence_batch.timing import Rates, estimate_seconds
from tests.tables import table_of
from tests.test_invariance import assert_same, running_on

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """10,000 rows of 30 float32 features, five classes."""
    random = np.random.default_rng(0)
    label = random.integers(0, 5, 10_000)
    features = random.standard_normal((10_000, 30)) + 2.0 * np.eye(5, 30)[label]
    frame = pd.DataFrame(features.astype(np.float32), columns=[f"x_{i}" for i in range(30)])
    path = tmp_path_factory.mktemp("data") / "train.parquet"
    frame.assign(label=np.where(random.random(10_000) < 0.03, (label + 1) % 5, label)).to_parquet(path)
    return path


def config(data: Path, **changes: Any) -> dict[str, Any]:
    return {"train": {"path": data, "label": "label"}, "model": {"l2": 0.01}, **changes}


def plan(data: Path, **changes: Any) -> Plan:
    return plan_audit(prepare(load_config(config(data, **changes))))[1]


def test_blocks_of_test_points_take_the_place_of_matrices(data: Path) -> None:
    """At the least memory that the matrices fit in, blocks are no smaller than just below it."""
    model = {"features": {"kind": "random_fourier", "components": 600}}
    made = [
        plan(data, model=model, memory_limit=f"{mebibytes}MiB", shard_rows=1_000)
        for mebibytes in range(300, 1_000, 4)
    ]
    dense = [one for one in made if one.inverse_bytes]
    assert 0 < len(dense) < len(made)
    assert made[-len(dense) :] == dense
    assert dense[0].block >= made[-len(dense) - 1].block
    assert all(stage.memory <= one.limit for one in made for stage in one.stages)


def test_sizes_and_stages(data: Path) -> None:
    made = plan(data, shard_rows=3_000)
    assert (made.sizes.n, made.sizes.d, made.sizes.k, made.sizes.m) == (10_000, 31, 5, 1_000)
    assert (made.shards, made.slots, made.block, made.solved) == (4, 1, 1_000, 256)
    assert [stage.name for stage in made.stages] == [
        "read", "fit", "influence", "cross_influence", "detection", "evidence", "report"
    ]  # fmt: skip
    assert all(stage.memory <= made.limit for stage in made.stages)
    assert not made.compact
    assert made.kept_share == 1.0
    widened = plan(data, model={"features": {"kind": "random_fourier", "components": 200}})
    assert widened.sizes.d == 201


def leave(monkeypatch: pytest.MonkeyPatch, made: Plan, share: float) -> None:
    """Have the next plan of the same audit keep no more than this share of its opened shards."""
    taken = made.cache_bytes - share * 8 * made.sizes.n * made.sizes.d
    monkeypatch.setattr("influence_batch.needs._BASE", needs_module._BASE + int(taken))


def test_what_does_not_fit_is_kept_as_the_files_have_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        leave(patched, plan(data), 0.3)
        small = plan(data)
    assert small.compact
    assert small.data_bytes == 4 * 30 * 10_000
    assert small.cache_bytes == pytest.approx(0.3 * 8 * 31 * 10_000, rel=0.01)
    assert small.kept_share == pytest.approx(0.6, abs=0.05)
    pca = {"model": {"features": "pca"}}
    leave(monkeypatch, plan(data, **pca), 0.3)
    assert plan(data, **pca).data_bytes == 8 * 50 * 10_000


@pytest.mark.parametrize(
    ("cluster", "slots"),
    [
        ("none", 1),
        ({"kind": "local", "workers": 3, "threads_per_worker": 2}, 6),
        ({"kind": "address", "address": "tcp://127.0.0.1:1"}, 4),
        ({"kind": "class", "class": "a.B", "scale": 7}, 7),
        ({"kind": "class", "class": "a.B", "adapt": {"minimum": 1, "maximum": 9}}, 9),
    ],
)
def test_places_of_work(data: Path, cluster: Any, slots: int) -> None:
    made = plan(data, cluster=cluster, memory_limit="4GiB")
    assert made.slots == slots
    # Each has its own p by p sum; two more are with the flow, and one on its way.
    one = 8 * made.sizes.p**2
    assert made.choice.dense_bytes == one * (2 if slots == 1 else 3 + 2 * slots)


def test_ekfac_counts_its_matrices_and_the_solves_of_test_points(data: Path) -> None:
    wide = {"features": {"kind": "random_fourier", "components": 1_000}}
    made = plan(data, model=wide, solver="ekfac", memory_limit="200MiB")
    d = made.sizes.d
    stages = {stage.name: stage for stage in made.stages}
    assert made.inverse_bytes == 0
    # Measured: 3 d by d while it is taken apart, and the sum of the features' products.
    assert stages["influence"].memory - stages["fit"].memory >= 4 * 8 * d**2
    assert stages["cross_influence"].solves > 10 * made.sizes.m * 4 * made.sizes.n * d * made.sizes.k
    rates = Rates(check=0.0, read=0.0, reopen=0.0, product=0.0, flop=1e-11, single_flop=5e-12, pair=0.0)
    assert estimate_seconds(made, rates)["cross_influence"] == 1e-11 * stages["cross_influence"].solves


@pytest.mark.parametrize(
    ("precision", "l2", "single"),
    [
        ("auto", 0.01, False),
        ("float32", 0.01, True),
        ("float64", 0.01, False),
        ("float32", 0, False),
        ("float32", "auto", True),
    ],
)
def test_the_type_of_leverages(data: Path, precision: str, l2: Any, single: bool) -> None:
    """10,000 x 31 and 5 classes are too little work for `auto`."""
    made = plan(data, solver={"precision": precision}, model={"l2": l2})
    assert made.single == single
    rates = Rates(check=0.0, read=0.0, reopen=0.0, product=0.0, flop=1e-9, single_flop=4e-10, pair=0.0)
    seconds = estimate_seconds(made, rates)
    assert made.describe(seconds)["precision"] == ("float32" if single else "float64")
    n, d, pairs = 10_000, 31, 10
    leverages = 1.2 * n * d**2 * pairs
    flops = {stage.name: stage.flops for stage in made.stages}
    saved = 6e-10 if single else 0.0
    assert seconds["influence"] == pytest.approx(1e-9 * flops["influence"] - saved * leverages)
    # A refit rescales leverages where their type is float32, which is one pass with two Kronecker products.
    refit = 4e-10 * 6.0 * n * d**2 if single else seconds["influence"]
    assert seconds["detection"] == pytest.approx(refit)


def test_a_hessian_for_few_test_points_is_planned_in_float32(data: Path) -> None:
    rates = Rates(check=0.0, read=0.0, reopen=0.0, product=0.0, flop=1e-9, single_flop=4e-10, pair=0.0)
    seconds = {}
    for m in (2, 3):
        made = plan(data, solver={"precision": "float32"}, influence={"test_sample": m})
        assert made.few_solves == (m == 2)
        seconds[m] = estimate_seconds(made, rates)["influence"]
        seconds[m] -= 1e-9 * made.stage("influence").flops
    assert seconds[3] - seconds[2] == pytest.approx(6e-10 * 10_000 * 31**2 * 10)


def test_work_enough_is_planned_in_float32(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("influence_batch.influence.precision._WORTH", 10_000 * 31**2 * 10)
    assert plan(data).single
    monkeypatch.setattr("influence_batch.influence.precision._WORTH", 10_000 * 31**2 * 10 + 1)
    assert not plan(data).single


@pytest.mark.parametrize("kind", ["squared", "softmax"])
def test_forms_that_leverages_take_are_counted(data: Path, kind: str) -> None:
    task = {"task": "classification"} if kind == "squared" else {}
    made = plan(data, model={"kind": kind, **task})
    stages = {stage.name: stage.memory for stage in made.stages}
    taken = stages["influence"] - stages["fit"]
    forms = quadratic_forms.form_bytes(made.sizes.loss, made.sizes.d)
    assert taken == pytest.approx(made.choice.dense_bytes + sum(forms))


@pytest.mark.parametrize("outputs", [1, 2, 10])
def test_forms_take_no_more_than_is_said(outputs: int) -> None:
    loss = Squared(1, False) if outputs == 1 else Softmax(outputs)
    d, q = 300, 300 * outputs
    blocks = np.ones((1, q, q))
    tracemalloc.start()
    quadratic_forms.leverage_forms(loss, blocks)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    said = sum(quadratic_forms.form_bytes(loss, d))
    assert 0.7 * said < taken <= said


def test_what_cannot_fit_is_refused_with_what_to_change(data: Path) -> None:
    with pytest.raises(
        InputError, match=r"^memory_limit: found 20 MiB; this audit takes at least (\d+) MiB: "
    ):
        plan(data, memory_limit="20MiB")
    with pytest.raises(InputError, match=r"Raise memory_limit, lower shard_rows, take fewer workers$"):
        plan(data, memory_limit="90MiB", shard_rows=10_000, cluster={"kind": "local", "workers": 4})
    wide = {"features": {"kind": "random_fourier", "components": 2_000}}
    with pytest.raises(RunError, match=r"Remedy: raise memory_limit, or set solver.kind: cg"):
        plan(data, memory_limit="200MiB", model=wide, solver="direct")
    made = plan(data, memory_limit="200MiB", model=wide).choice
    assert made.kind == "ekfac"
    assert "dense matrices" in made.reason


def test_the_least_that_is_named_is_enough(data: Path) -> None:
    with pytest.raises(InputError) as caught:
        plan(data, memory_limit="20MiB", shard_rows=1_000)
    least = re.search(r"at least (\d+) MiB", str(caught.value))
    assert least is not None
    plan(data, memory_limit=f"{least[1]}MiB", shard_rows=1_000)


def test_many_classes_make_small_shards(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(40_000.0), "label": np.arange(40_000) % 1_000})
    frame.to_parquet(tmp_path / "t.parquet")
    few = plan(tmp_path / "t.parquet", model={"kind": "squared"})
    many = plan(tmp_path / "t.parquet", model={"kind": "squared", "task": "classification"})
    assert few.shards == 1
    assert many.shard_rows * 1_000 * 12 * 8 < 64 * 2**20
    assert many.shards == -(-40_000 // many.shard_rows)


def test_labels_are_refused_before_any_work(data: Path, tmp_path: Path) -> None:
    frame = pd.read_parquet(data).assign(label=1.5)
    frame.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"^train.label: column label has numbers such as 1.5"):
        plan(tmp_path / "t.parquet")


STEPS: dict[str, Any] = {
    "raw": None,
    "standardize": "standardize",
    "pca": {"kind": "pca", "components": 12},
    "pca and standardize": [{"kind": "pca", "components": 12}, "standardize"],
    "nystroem": {"kind": "nystroem", "components": 20},
}


@pytest.fixture(scope="module")
def workers() -> Iterator[Any]:
    with open_executor(LocalCluster(workers=2), 0) as executor:
        yield executor


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_small_memory_on_workers(
    data: Path, tmp_path: Path, steps: Any, workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is kept of a shard on a worker is opened as the pass wants it, whoever loaded it."""
    model = {"kind": "squared", "task": "classification", "l2": 0.01, "features": steps}
    more = {"shard_rows": 2_000, "influence": {"test_sample": 20}, "model": {**model, "intercept": False}}
    expected = influence_batch.audit(config(data, **more, reports=tmp_path / "large"))
    leave(monkeypatch, plan(data, **more), 0.2)
    assert plan(data, **more).compact
    with running_on(monkeypatch, workers):
        found = influence_batch.audit(config(data, **more, reports=tmp_path / "small"))
    assert_same(found, expected)


@pytest.mark.parametrize("steps", [None, "standardize", {"kind": "pca", "components": 12}])
def test_small_memory_rounds_nothing(
    data: Path, tmp_path: Path, steps: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kept as float32 and streamed from disk: digit by digit the tables of shards kept as float64."""
    more = {"shard_rows": 1_000, "influence": {"test_sample": 20}, "model": {"l2": 0.01, "features": steps}}
    large = influence_batch.audit(config(data, **more, reports=tmp_path / "large"))
    leave(monkeypatch, plan(data, **more), 0.2)
    assert plan(data, **more).compact
    small = influence_batch.audit(config(data, **more, reports=tmp_path / "small"))
    assert large.run["execution"]["kept_in_memory"] == 1.0
    assert small.run["execution"]["kept_in_memory"] < 0.5
    for name in ("examples", "suspects", "test_points", "cross_influence"):
        pd.testing.assert_frame_equal(table_of(small, name), table_of(large, name), check_exact=True)


def test_example_configs_of_clusters_are_valid() -> None:
    slurm = load_config(ROOT / "configs" / "cluster_slurm.yaml")
    kubernetes = load_config(ROOT / "configs" / "cluster_kubernetes.yaml")
    assert slurm.cluster.kind == kubernetes.cluster.kind == "class"
    assert kubernetes.train.path == "s3://bucket/digits/train.parquet"


def test_secrets_of_a_cluster_class_are_not_recorded(data: Path) -> None:
    arguments = {"cores": 2, "env": {"AWS_SECRET_ACCESS_KEY": "x"}, "mounts": [{"path": "/a", "token": "x"}]}
    cluster = {"kind": "class", "class": "a.B", "kwargs": arguments}
    shown = _without_secrets(load_config(config(data, cluster=cluster)).model_dump(mode="json"))
    assert shown["cluster"]["kwargs"] == {
        "cores": 2,
        "env": {"AWS_SECRET_ACCESS_KEY": "(not recorded)"},
        "mounts": [{"path": "/a", "token": "(not recorded)"}],
    }
