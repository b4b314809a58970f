"""Where time and memory of an audit go, by stage, and how near its products come to the machine's rate.

What runs is an audit like any other: the executor is watched from outside, and each pass over the data
counted by the formula of its function, for the rows that it really went over. `_FORMULAS` has them all.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import psutil
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

from influence_batch.config import AuditConfig
from influence_batch.execution import Executor, InProcessExecutor, Reduction, RowArray, ShardedSource
from influence_batch.execution.reduction import MapFunction, Successor
from influence_batch.influence.objective import hessian_shape
from influence_batch.models import linear, quadratic_forms
from influence_batch.needs import planned_slots
from influence_batch.plan import Plan
from influence_batch.solvers import Kronecker
from influence_batch.stages import Clock

T = TypeVar("T")

COUNTED = (
    "products of matrices in passes over the data, by formulas, for the rows that were gone over; where the "
    "solver is direct, its factors, inverse and solves. Not counted: losses, preconditioners, systems of one "
    "example, ranking"
)
# Rows of the square matrices whose product is measured, and seconds of each measurement.
_SIZE, _SECONDS = 1536, 0.3
# Seconds between two looks at the memory.
_LOOK = 0.02


class Flops(NamedTuple):
    """Floating-point operations by type."""

    double: float = 0.0
    single: float = 0.0


class Pass(NamedTuple):
    """Rows that a map function goes over, the state that it gets, what comes of it, and the audit's plan."""

    rows: float
    state: Any
    result: Any
    plan: Plan


def _logits(over: Pass) -> Flops:
    sizes = over.plan.sizes
    return Flops(2.0 * over.rows * sizes.d * sizes.k)


def _value(over: Pass) -> Flops:
    return Flops(2 * _logits(over).double)


def _product(over: Pass) -> Flops:
    vectors = over.state[2].shape[1]
    return Flops((2 * vectors + 1) * _logits(over).double)


def _sample_product(over: Pass) -> Flops:
    share = len(over.state[3]) / over.plan.sizes.n
    return Flops(share * _product(over).double)


def _gram(over: Pass) -> Flops:
    """Symmetric: half of the products."""
    return Flops(over.rows * over.plan.sizes.d**2)


def _hessian(over: Pass) -> Flops:
    pairs = linear.hessian_pairs(over.plan.sizes.loss)
    return _of_type(pairs * _gram(over).double, over.state[2], _logits(over).double)


def _influence(over: Pass) -> Flops:
    """Leverages: the lower half of each pair's matrix, in slices of columns; or one basis for all pairs."""
    sizes = over.plan.sizes
    if isinstance(over.state[2], Kronecker):
        return _of_type(2.0 * over.rows * sizes.d * (sizes.d + sizes.k), over.state[4], _value(over).double)
    count = max(1, round(sizes.d / quadratic_forms.COLUMNS))
    pairs = linear.hessian_pairs(sizes.loss)
    products = pairs * over.rows * sizes.d**2 * (1 + 1 / count)
    return _of_type(products, over.state[4], _value(over).double)


def _rescaled(over: Pass) -> Flops:
    sizes = over.plan.sizes
    return _of_type(
        2.0 * over.rows * sizes.d * (sizes.d + 2 * sizes.k), over.state[2].single, _value(over).double
    )


def _of_type(products: float, single: bool, double: float) -> Flops:
    """Products of the type that `solver.precision` has led to, and others of float64."""
    return Flops(double, products) if single else Flops(products + double)


def _values(over: Pass) -> Flops:
    """Curvature in a Kronecker product's basis."""
    sizes = over.plan.sizes
    return Flops(2.0 * over.rows * sizes.d * (sizes.d + sizes.k) + _logits(over).double)


def _top_k(over: Pass) -> Flops:
    """Of the pairs that are looked at, which are not all."""
    k, d, _ = over.state.columns.shape
    return Flops(single=2.0 * over.result.pairs * k * d)


def _reach(over: Pass) -> Flops:
    return Flops(single=2 * _gram(over).double)


# By name of the map function: operations of a pass over some rows. A function that is not here is reported by
# its name; those that multiply nothing have None.
_FORMULAS: Mapping[str, Callable[[Pass], Flops] | None] = {
    "_shard_value": _value,
    "_shard_product": _product,
    "_shard_sample_product": _sample_product,
    "_shard_gram": _gram,
    "_shard_hessian": _hessian,
    "_shard_curvature": _logits,
    "_shard_influence": _influence,
    "_shard_rescaled": _rescaled,
    "_shard_values": _values,
    "_shard_top_k": _top_k,
    "_shard_reach": _reach,
    "_shard_mean": _logits,
    "_shard_loss": _logits,
    "_shard_errors": _logits,
    "_shard_squares": None,
    "_whole_shard": None,
    "_inspect_shard": None,
    "_select": None,
}


def _beside(name: str, state: Any, plan: Plan) -> Flops:
    """What is done once for a whole pass of this function: dense algebra of a direct solver."""
    blocks, size, copies = hessian_shape(plan.sizes.loss, plan.sizes.d)
    if name == "_shard_hessian":  # a Hessian that is formed is factored
        return Flops(blocks * size**3 / 3)
    if name == "_shard_influence" and not isinstance(state[2], Kronecker):
        return Flops(2 * blocks * size**3 / 3)
    if name == "_shard_top_k" and plan.choice.kind == "direct":  # a solve, and its residual
        return Flops(4.0 * copies * blocks * size**2 * state.columns.shape[2])
    return Flops()


@dataclass
class _Stage:
    seconds: float = 0.0
    memory: int = 0
    rows: float = 0.0
    double: float = 0.0
    single: float = 0.0
    not_counted: set[str] = field(default_factory=set)

    def add(self, flops: Flops) -> None:
        self.double += flops.double
        self.single += flops.single


class Profile(Clock):
    """A clock that also counts and looks at the memory. Measures the machine's rate when it is made.

    Args:
        config: of the audit; says whether it runs on this machine.

    Attributes:
        plan: of the audit, from which operations are counted.
    """

    def __init__(self, config: AuditConfig) -> None:
        super().__init__()
        self._stages: dict[str, _Stage] = {}
        self.plan: Plan | None = None
        self._in_process = config.cluster.kind == "none"
        here = config.cluster.kind in ("none", "local")
        self._rates = (
            measure_rates(None if self._in_process else planned_slots(config.cluster)) if here else None
        )
        self._memory = _Watch()

    def watch(self, executor: Executor, plan: Plan) -> Executor:
        """An executor that does what the given one does, and tells this profile of it."""
        self.plan = plan
        return _Watched(executor, self)

    def __enter__(self) -> None:
        self._memory.start()
        super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        stage = self._of(self._stage)
        stage.seconds += self.seconds[self._stage]
        stage.memory = max(stage.memory, self._memory.stop())

    def count(self, name: str, rows: float, state: Any, result: Any, begun: bool = True) -> None:
        """Rows that a map function has gone over; `begun` once for each pass."""
        if self.plan is None:
            return
        stage = self._of(self._stage)
        stage.rows += rows
        if name not in _FORMULAS:
            stage.not_counted.add(name.removeprefix("_shard").strip("_"))
        elif formula := _FORMULAS[name]:
            stage.add(formula(Pass(rows, state, result, self.plan)))
        if begun:
            stage.add(_beside(name, state, self.plan))

    def described(self) -> dict[str, Any]:
        """What run.json has under `profile`."""
        n = 1 if self.plan is None else self.plan.sizes.n
        return {
            "profile": {
                "rates": None if self._rates is None else self._rates._asdict(),
                "counted": COUNTED,
                "memory_of": "this process"
                if self._in_process
                else "this process; that of workers is not known",
                "stages": [self._described(name, stage, n) for name, stage in self._stages.items()],
            }
        }

    def _described(self, name: str, stage: _Stage, n: int) -> dict[str, Any]:
        flops, share = stage.double + stage.single, None
        if self._rates is not None and flops and stage.seconds:
            at_full_rate = stage.double / self._rates.float64 + stage.single / self._rates.float32
            share = round(at_full_rate / stage.seconds, 4)
        return {
            "name": name,
            "seconds": round(stage.seconds, 4),
            "peak_memory_bytes": stage.memory,
            "passes": round(stage.rows / n, 2),
            "flops_float64": stage.double,
            "flops_float32": stage.single,
            "flops_per_second": flops / stage.seconds if stage.seconds else 0.0,
            "share_of_rate": share,
            "not_counted": sorted(stage.not_counted),
        }

    def _of(self, name: str) -> _Stage:
        return self._stages.setdefault(name, _Stage())


class Rates(NamedTuple):
    """Operations a second in products of large matrices of this machine, with so many threads."""

    float64: float
    float32: float
    threads: int


def measure_rates(threads: int | None = None) -> Rates:
    """The best of several products, in each type.

    Args:
        threads: of BLAS; None for as many as it has.
    """
    with nullcontext() if threads is None else threadpool_limits(threads, user_api="blas"):
        libraries = [library for library in threadpool_info() if library["user_api"] == "blas"]
        used = max((int(library["num_threads"]) for library in libraries), default=os.cpu_count() or 1)
        return Rates(_rate(np.dtype(np.float64)), _rate(np.dtype(np.float32)), used)


def _rate(dtype: np.dtype[Any]) -> float:
    random = np.random.default_rng(0)
    left, right = (random.standard_normal((_SIZE, _SIZE)).astype(dtype) for _ in range(2))
    out = np.empty_like(left)
    best, begun = np.inf, time.perf_counter()
    while time.perf_counter() - begun < _SECONDS or best == np.inf:
        start = time.perf_counter()
        np.matmul(left, right, out=out)
        best = min(best, time.perf_counter() - start)
    return 2.0 * _SIZE**3 / best


class _Watched:
    """An executor, watched."""

    def __init__(self, executor: Executor, profile: Profile) -> None:
        self._executor = executor
        self._profile = profile

    @property
    def slots(self) -> int:
        return self._executor.slots

    def reduce(
        self,
        source: ShardedSource,
        reduction: Reduction[T],
        state: Any = None,
        rows: Mapping[str, RowArray] | None = None,
    ) -> T:
        result = self._executor.reduce(source, reduction, state, rows)
        last = source.bounds(source.n_shards - 1)[1] if source.n_shards else 0
        self._profile.count(reduction.map.__name__, last, state, result)
        return result

    def map(
        self,
        source: ShardedSource,
        function: MapFunction[T],
        state: Any = None,
        rows: Mapping[str, RowArray] | None = None,
        shards: Sequence[int] | None = None,
    ) -> Iterator[tuple[int, T]]:
        begun = True
        for index, value in self._executor.map(source, function, state, rows, shards):
            start, stop = source.bounds(index)
            self._profile.count(function.__name__, stop - start, state, value, begun)
            begun = False
            yield index, value

    def release(self, source: ShardedSource) -> None:
        self._executor.release(source)

    def hand_on(self, before: ShardedSource, after: Successor) -> None:
        self._executor.hand_on(before, after)

    def beside(self) -> Executor:
        return _Watched(InProcessExecutor(0), self._profile)


class _Watch:
    """The most resident memory of this process between start and stop, looked at now and then."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._most = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._most = self._resident()
        self._ended.clear()
        self._thread = threading.Thread(target=self._look, name="influence-batch-memory", daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        return max(self._most, self._resident())

    def _look(self) -> None:
        while not self._ended.wait(_LOOK):
            self._most = max(self._most, self._resident())

    def _resident(self) -> int:
        return int(self._process.memory_info().rss)
