"""How long a plan will take on this machine, from work on one shard of its own data."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from influence_batch.config import AuditConfig
from influence_batch.dataset import Dataset
from influence_batch.dataset.inspection import inspect
from influence_batch.dataset.shards import Shard
from influence_batch.execution.scratch import Scratch
from influence_batch.influence.cross import work_of_cross_influence
from influence_batch.influence.objective import work_of_product
from influence_batch.models import linear
from influence_batch.plan import Plan

# Rows of the shard that are worked on, and the least time that a measurement takes.
_ROWS, _SECONDS = 4000, 0.1
_TEST_POINTS = 64
# A pass of a fit, with value, gradient, steps and a sample's fit before it, in Hessian-vector products.
_PASS_OF_FIT = 2.0


@dataclass(frozen=True)
class Rates:
    """Seconds of one process, with all threads of its BLAS.

    Attributes:
        check: of one row read and checked.
        read: of one row read from its file and opened.
        reopen: of one row mapped from a disk and opened.
        product: of one row in a Hessian-vector product for one vector.
        flop, single_flop: of one operation in a product of matrices, in float64 and float32.
        pair: of one row and one test point in cross-influence.
    """

    check: float
    read: float
    reopen: float
    product: float
    flop: float
    single_flop: float
    pair: float


def measure(config: AuditConfig, plan: Plan, train: Dataset) -> Rates:
    """Measure for about a second."""
    dataset = replace(train.having(classes=plan.classes), refs=train.refs[:1])
    rows = dataset.n_rows
    check = _seconds(lambda: inspect(dataset)) / rows
    read = _seconds(lambda: dataset.open(dataset.load(0))) / rows
    kept = dataset.load(0)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Scratch(Path(folder))
        scratch.put(0, kept)
        reopen = _seconds(lambda: dataset.open(scratch.get(0))) / rows
    loss, d, k = plan.sizes.loss, plan.sizes.d, plan.sizes.k
    targets = dataset.open(kept).targets[:_ROWS]
    random = np.random.default_rng(0)
    # The features that the steps will make are not known yet; their number is.
    shard = Shard(0, random.standard_normal((len(targets), d)), targets)
    weights = 0.1 * random.standard_normal((k, d))
    n = len(targets)
    product = _seconds(lambda: work_of_product(shard, loss, weights)) / n
    pairs = linear.hessian_pairs(loss)

    def flop(single: bool) -> float:
        def work() -> object:
            return linear.pair_sums(loss, weights, shard.features, targets, None, single)

        return _seconds(work) / (n * d**2 * pairs)

    pair = _seconds(
        lambda: work_of_cross_influence(shard, loss, weights, _TEST_POINTS, config.influence.top_k)
    ) / (n * _TEST_POINTS)
    return Rates(check, read, reopen, product, flop(False), flop(True), pair)


def _seconds(work: Callable[[], object]) -> float:
    """Of one call, the first not counted: it warms caches up."""
    work()
    calls, start = 0, time.perf_counter()
    while (spent := time.perf_counter() - start) < _SECONDS or calls == 0:
        work()
        calls += 1
    return spent / calls


def estimate_seconds(plan: Plan, rates: Rates) -> dict[str, float]:
    """Seconds by stage, on cores like this machine's and no others at work."""
    n, m = plan.sizes.n, plan.sizes.m
    reopened = (1.0 - plan.kept_share) * rates.reopen
    seconds: dict[str, float] = {}
    saved = {stage.name: stage.single * (rates.flop - rates.single_flop) for stage in plan.stages}
    if not plan.single or rates.single_flop > rates.flop:
        saved = dict.fromkeys(saved, 0.0)
    for stage in plan.stages:
        reading = stage.passes * n * reopened
        if stage.name == "read":
            seconds[stage.name] = n * rates.check
        elif stage.name == "fit":
            seconds[stage.name] = n * rates.read + _PASS_OF_FIT * stage.passes * n * rates.product + reading
        elif stage.name == "cross_influence":
            seconds[stage.name] = n * m * rates.pair + stage.solves * rates.flop + reading
        elif stage.name == "detection":
            fit = plan.stage("fit")
            own = (stage.flops - 0.5 * fit.flops) * rates.flop - saved["detection"]
            again = (stage.passes - 0.5 * fit.passes) * n * reopened
            seconds[stage.name] = 0.5 * seconds["fit"] + max(0.0, own) + again
        else:
            seconds[stage.name] = stage.flops * rates.flop - saved[stage.name] + reading
    return seconds
