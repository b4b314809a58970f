"""What an audit will take, before any work: sizes, solver, flops, memory, disk, time.

The audit takes its decisions (solver, size of blocks, how much of the data stays in memory) from the same
plan that `influence-batch plan` prints.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from influence_batch.config import AuditConfig
from influence_batch.dataset import Dataset
from influence_batch.errors import InputError
from influence_batch.influence.objective import hessian_shape
from influence_batch.influence.precision import worth_single
from influence_batch.models import linear, make_loss, quadratic_forms
from influence_batch.needs import ROW_BYTES, Sizes, model_width, needs_of, planned_slots, too_small
from influence_batch.solvers.choice import Choice, choose

# Passes that the fit of a model takes, about.
# Measured: 31 to 139, on embeddings of MNIST 86.
_FIT_PASSES = 90
# Passes over the data of float64 for a solve that is refined, in units of products of float32.
_PASSES_A_SOLVE = 6.0
# Iterations of CG for one test point where the Kronecker product preconditions it.
_EKFAC_ITERATIONS = 30
# Matrices (d, d) of a Hessian taken apart: in the flow's process, and in each map function on workers.
_EKFAC_COPIES, _EKFAC_COPIES_A_SLOT = 4.0, 2.0
# Rows of the list that get evidence, as far as a plan can tell.
_LISTED = 5000
_INTERPRETER = 512 * 1024**2


@dataclass(frozen=True)
class Stage:
    """What one stage takes.

    Attributes:
        name: as in run.json's `seconds`.
        flops: of matrix products.
        passes: over the training set.
        memory: bytes in all processes together, beside the shards that are kept.
        solves: of `flops`, those for test points.
        single: of `flops`, those that are of float32 where the plan has `single`.
    """

    name: str
    flops: float
    passes: float
    memory: float
    solves: float = 0.0
    single: float = 0.0


@dataclass(frozen=True)
class Plan:
    """What an audit will do and take.

    Attributes:
        sizes: of the problem.
        classes: of train, None for regression.
        slots: map functions that run at a time.
        shards, shard_rows: how train is cut.
        choice: the solver, and why.
        inverse_bytes: of the inverse Hessian, 0 where it is not formed.
        single: whether leverages are made of float32 products, unless rounding would show: the fitted
            features say that.
        block: test points whose pairs are looked through together.
        solved: those of them that are solved for together.
        cache_bytes: of shards that stay in memory, all processes together.
        data_bytes: of all shards in the form in which they are kept.
        compact: whether they are kept as the files have them.
        doubled: whether they are kept in float64 and in float32, each for the passes that take it.
        stages: in order.
        disk_bytes: of the parts and the report.
        limit: memory_limit.
    """

    sizes: Sizes
    classes: tuple[Any, ...] | None
    slots: int
    shards: int
    shard_rows: int
    choice: Choice
    inverse_bytes: float
    single: bool
    few_solves: bool
    rescales: bool
    block: int
    solved: int
    cache_bytes: int
    data_bytes: float
    compact: bool
    doubled: bool
    stages: tuple[Stage, ...]
    disk_bytes: float
    limit: int

    def stage(self, name: str) -> Stage:
        """The stage of that name."""
        return next(stage for stage in self.stages if stage.name == name)

    def with_features(self, d: int) -> Plan:
        """This plan with fewer features, intercept included; its memory and times are bounds then."""
        return replace(self, sizes=replace(self.sizes, d=d))

    @property
    def kept_share(self) -> float:
        """Of the training set that stays in memory from pass to pass."""
        return min(1.0, self.cache_bytes / self.data_bytes) if self.data_bytes else 1.0

    def worker_bytes(self, threads: int) -> int:
        """What a local worker of some threads will never take, interpreter included; else it is a runaway."""
        return self.limit * threads // self.slots * 3 // 2 + _INTERPRETER

    def describe(self, seconds: Mapping[str, float]) -> dict[str, Any]:
        """The object that `influence-batch plan --json` prints.

        Args:
            seconds: estimated, by name of the stage.
        """
        return {
            "rows": self.sizes.n,
            "features": self.sizes.d,
            "outputs": self.sizes.k,
            "parameters": self.sizes.p,
            "test_points": self.sizes.m,
            "shards": self.shards,
            "shard_rows": self.shard_rows,
            "block": self.block,
            "slots": self.slots,
            "solver": self.choice.kind,
            "reason": self.choice.reason,
            "precision": "float32" if self.single else "float64",
            "memory_limit": self.limit,
            "data_bytes": int(self.data_bytes),
            "kept_share": round(self.kept_share, 4),
            "disk_bytes": int(self.disk_bytes),
            "stages": [
                {
                    "name": stage.name,
                    "flops": stage.flops,
                    "passes": stage.passes,
                    "memory_bytes": int(stage.memory + min(self.cache_bytes, self.data_bytes)),
                    "seconds": round(seconds[stage.name], 2),
                }
                for stage in self.stages
            ],
        }


def _has_costly_steps(config: AuditConfig) -> bool:
    return any(hasattr(step, "components") for step in config.model.features)


def may_leave_out_features(config: AuditConfig) -> bool:
    """Whether a feature that is zero in every row of train has no part in the audit.

    Weights that are given may have one for it, and a step that takes features together would make others of
    those of a test point.
    """
    return config.model.weights is None and all(step.kind == "standardize" for step in config.model.features)


def reuses_features(config: AuditConfig) -> bool:
    """Whether features are kept for the next run: those that cost, where all that compute see one disk."""
    return config.reuse_features and _has_costly_steps(config) and config.cluster.kind in ("none", "local")


def make_plan(config: AuditConfig, train: Dataset, n_test: int, classes: tuple[Any, ...] | None) -> Plan:
    """Plan an audit.

    Args:
        train: as opened, no steps fitted.
        n_test: rows of the test set, 0 where there is none.
        classes: of train, None for regression.

    Raises:
        InputError: memory_limit is too small for any way of doing it.
        RunError: too small for the solver that the config asks for.
    """
    loss = make_loss(config.model.kind, None if classes is None else len(classes), config.model.temperature)
    d, _ = model_width(config, train.width)
    n = train.n_rows
    sizes = Sizes(n, d, loss.outputs, n_test or min(config.influence.test_sample, n), loss)
    slots = planned_slots(config.cluster)
    limit = int(config.memory_limit)
    needs = needs_of(config, sizes, train.width, classes is None)
    usable = needs.usable
    if needs.least > usable:
        raise InputError(too_small(config, sizes, train.width, classes is None, needs))
    rows = max(ref.rows for ref in train.refs)
    # The sum and what is added to it; later the factor and the inverse. On workers the same again,
    # and what is on its way.
    copies = 2.0 if config.cluster.kind == "none" else 3.0 + 2.0 * slots
    shape = hessian_shape(loss, d)
    one = 8.0 * shape.blocks * shape.size**2
    kept_forms, making = quadratic_forms.form_bytes(loss, d)
    # The flow's process makes them; workers have copies.
    forms = kept_forms * (1 if config.cluster.kind == "none" else 1 + slots) + making
    choice = choose(
        config.solver.kind,
        shape,
        n=n,
        d=d,
        k=sizes.k,
        test_points=sizes.m,
        memory=usable - needs.fixed - forms,
        copies=copies,
    )
    inverse = one if copies * one <= usable - needs.fixed - forms else 0.0
    matrices = copies * one if choice.kind == "direct" or inverse else 0.0
    dense = matrices + forms if matrices else 0.0
    kept = one if matrices else 0.0
    if choice.kind == "ekfac":
        apart = _EKFAC_COPIES + (0.0 if config.cluster.kind == "none" else slots * _EKFAC_COPIES_A_SLOT)
        dense = max(dense, matrices + 8.0 * d**2 * apart)
        kept = kept or dense
    # Test points come when of these matrices the factor alone is left, and take their place.
    block, solved = needs.within(min(max(needs.points, dense - kept), usable - needs.fixed - kept), sizes.m)
    crossing = kept + block * needs.column + solved * needs.solving
    cache = max(0, int(usable - needs.fixed - max(dense, crossing)))
    opened = 8.0 * n * d
    compact = opened > cache
    # A compact shard is kept as it is behind the last step that is work to redo.
    redone = _has_costly_steps(config)
    kept_width = d - config.model.intercept if compact else d
    narrow = compact and train.float32 and not redone
    data_bytes = (4.0 if narrow else 8.0) * n * kept_width
    single = config.model.l2 != 0 and worth_single(config.solver.precision, n, d, loss)
    doubled = single and 1.5 * opened <= cache
    if doubled:
        data_bytes *= 1.5
    rescales = single and inverse > 0 and choice.kind == "direct" and not loss.constant_curvature
    few_solves = _PASSES_A_SOLVE * 4.0 * sizes.k * sizes.m <= d * linear.hessian_pairs(loss)
    stages = tuple(_stages(sizes, choice, block, inverse, needs.fixed, dense, crossing, few_solves, rescales))
    parts = (
        n * (8.0 * (4 * sizes.k + 12)) * 2
        + 2 * matrices
        + 400.0 * sizes.m * config.influence.top_k
        + 8.0 * sizes.p * sizes.m
    )
    if rescales:
        parts += 4.0 * n * linear.hessian_pairs(loss)
    if reuses_features(config):
        parts += 8.0 * (n + n_test) * kept_width
    return Plan(
        sizes=sizes,
        classes=classes,
        slots=slots,
        shards=train.n_shards,
        shard_rows=rows,
        choice=choice,
        inverse_bytes=inverse,
        single=single,
        few_solves=few_solves,
        rescales=rescales,
        block=block,
        solved=solved,
        cache_bytes=cache,
        data_bytes=data_bytes,
        compact=compact,
        doubled=doubled,
        stages=stages,
        disk_bytes=parts + max(0.0, data_bytes - cache),
        limit=limit,
    )


def _stages(
    sizes: Sizes,
    choice: Choice,
    block: int,
    inverse: float,
    fixed: float,
    dense: float,
    crossing: float,
    few_solves: bool,
    rescales: bool,
) -> Iterator[Stage]:
    n, d, k, m = sizes.n, sizes.d, sizes.k, sizes.m
    one_pass = 4.0 * n * d * k
    pairs = linear.hessian_pairs(sizes.loss)
    fit_flops = _FIT_PASSES * one_pass
    products = 1.2 * n * d**2 * pairs
    leverages = products + (30.0 * n * k**3 if not sizes.loss.separable else 0.0)
    solves = (choice.direct_flops if choice.kind == "direct" else choice.cg_flops) + leverages
    # Otherwise the solver's own solves stand with the leverages'.
    test_solves, test_passes = 0.0, 0
    influence_passes = 2.0 if choice.kind == "direct" or inverse else float(n * k)
    if choice.kind == "ekfac":
        solves, influence_passes = 5.0 * n * d**2 + 30.0 * n * k**3 + 10.0 * d**3, 4.0
        test_solves = choice.direct_flops if inverse else m * _EKFAC_ITERATIONS * one_pass
        test_passes = 1 if inverse else -(-m // block) * _EKFAC_ITERATIONS
    yield Stage("read", 0.0, 1, fixed)
    yield Stage("fit", fit_flops, _FIT_PASSES, fixed)
    # A Hessian that many test points are solved for with is of float64; a refit's serves leverages alone.
    single, hessian = (products, n * d**2 * pairs) if choice.kind != "ekfac" and inverse else (0.0, 0.0)
    of_first = single + (hessian if few_solves else 0.0)
    yield Stage("influence", solves, influence_passes, fixed + dense, single=of_first)
    # As if no pair were left out, which only the data can tell, and what is done with n k m numbers beside.
    cross = 2.0 * n * sizes.p * m + 60.0 * n * k * m + test_solves
    yield Stage("cross_influence", cross, -(-m // block) + test_passes, fixed + crossing, test_solves)
    if rescales:
        # As a rule: where that is too far off the refit takes what the first fit does.
        solves = single = 6.0 * n * d**2
        hessian, influence_passes = 0.0, 3.0
    yield Stage(
        "detection",
        0.5 * fit_flops + solves,
        _FIT_PASSES / 2 + influence_passes,
        fixed + dense,
        single=single + hessian,
    )
    yield Stage("evidence", 2.0 * n * d * _LISTED, 3, fixed)
    yield Stage("report", 0.0, 0, ROW_BYTES * n)
