"""The section `cluster` of the config file: its kinds, their short form, and what is said of mistakes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from influence_batch.config import ClusterAddress, ClusterClass, LocalCluster, NoCluster, load_config
from influence_batch.errors import InputError

TRAIN = "train: {path: train.parquet, label: y}\n"
CLASS_KEYS = "kind, class, kwargs, scale, adapt, timeout"
CLASS_PATH = "import path of a Dask cluster class, such as dask_jobqueue.SLURMCluster"


def load(folder: Path, text: str) -> Any:
    file = folder / "nightly.yaml"
    file.write_text(TRAIN + text, encoding="utf-8")
    return load_config(file)


@pytest.mark.parametrize(
    ("text", "cluster"),
    [
        ("none", NoCluster()),
        ("{}", NoCluster()),
        ("local", LocalCluster()),
        ("{kind: local, workers: 3}", LocalCluster(workers=3)),
        ("{kind: local, workers: auto, threads_per_worker: 2}", LocalCluster(threads_per_worker=2)),
        ("{kind: address, address: a:1, timeout: 5}", ClusterAddress(address="a:1", timeout=5.0)),
        ("{kind: class, class: a.b.C, scale: 4}", ClusterClass(**{"class": "a.b.C", "scale": 4})),
    ],
)
def test_clusters(tmp_path: Path, text: str, cluster: Any) -> None:
    assert load(tmp_path, f"cluster: {text}").cluster == cluster


@pytest.mark.parametrize(
    "cluster",
    [
        "local",
        "{kind: address, address: 'tcp://10.0.0.7:8786'}",
        "{kind: class, class: dask_jobqueue.SLURMCluster, kwargs: {cores: 4}, adapt: {maximum: 9}}",
    ],
)
def test_a_cluster_survives_the_round_trip_through_run_json(tmp_path: Path, cluster: str) -> None:
    config = load(tmp_path, f"cluster: {cluster}")
    written = json.loads(json.dumps(config.model_dump(mode="json")))
    assert load_config(written) == config
    assert load_config(config, ["seed=0"]) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{kind: dask}", "cluster.kind: found 'dask'; accepted: none, local, address, class"),
        ("locl", "cluster.kind: found 'locl' (did you mean local?); accepted: none, local, address, class"),
        ("[1]", "cluster: found [1]; accepted: a mapping with `kind`: none, local, address, class"),
        (
            "{workers: 3}",
            "cluster: found {'workers': 3}; accepted: a mapping with `kind`: none, local, address, class",
        ),
        (
            "{kind: local, worker: 3}",
            "cluster.worker: unknown key; did you mean `workers`? known keys: kind, workers, "
            "threads_per_worker",
        ),
        (
            "{kind: local, workers: true}",
            "cluster.workers: found true; accepted: a whole number of processes on this machine, 1 or more, "
            "or auto (one for each core)",
        ),
        (
            "{kind: local, threads_per_worker: 0}",
            "cluster.threads_per_worker: found 0; accepted: a whole number, 1 or more",
        ),
        (
            "{kind: address}",
            "cluster.address: missing; this key has no default; accepted: address of a running Dask "
            "scheduler, such as tcp://10.0.0.7:8786",
        ),
        (
            "{kind: address, address: a, timeout: 0}",
            "cluster.timeout: found 0; accepted: seconds to wait for the scheduler and for a first worker: "
            "a number above 0",
        ),
        ("class", f"cluster.class: missing; this key has no default; accepted: {CLASS_PATH}"),
        ("{kind: class, class: B}", f"cluster.class: found 'B'; accepted: {CLASS_PATH}"),
        (
            "{kind: class, class: a.B, class_path: a.B}",
            f"cluster.class_path: unknown key; did you mean `class`? known keys: {CLASS_KEYS}",
        ),
        (
            "{kind: class, class: a.B, kwargs: [1]}",
            "cluster.kwargs: found [1]; accepted: a mapping with the arguments of the class",
        ),
        (
            "{kind: class, class: a.B, scale: 3, adapt: {maximum: 3}}",
            "cluster: found {'kind': 'class', 'class': 'a.B', 'scale': 3, 'adapt': {'maximum': 3}}; "
            "accepted: scale or adapt, not both",
        ),
        (
            "{kind: class, class: a.B, adapt: {minimum: 4, maximum: 3}}",
            "cluster.adapt: found {'minimum': 4, 'maximum': 3}; accepted: a maximum that is at least the "
            "minimum",
        ),
        (
            "{kind: class, class: a.B, adapt: 4}",
            "cluster.adapt: found 4; accepted: a mapping with the keys minimum, maximum",
        ),
        (
            "{kind: class, class: a.B, adapt: {minimum: 0, maximum: 1}}",
            "cluster.adapt.minimum: found 0; accepted: a whole number of workers, 1 or more",
        ),
    ],
)
def test_mistakes_in_the_cluster(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, f"cluster: {text}")
    assert str(caught.value) == f"{tmp_path / 'nightly.yaml'}: {message}"
