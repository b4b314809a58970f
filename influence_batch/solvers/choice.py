"""Which solver, and why: the plan behind `solver.kind: auto`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from influence_batch.config import CgSolver, EkfacSolver, LissaSolver, SolverConfig
from influence_batch.errors import RunError
from influence_batch.solvers.conjugate_gradient import ConjugateGradient
from influence_batch.solvers.direct import Direct
from influence_batch.solvers.ekfac import Ekfac
from influence_batch.solvers.lissa import Lissa
from influence_batch.solvers.operator import BlockShape, InverseHessian, Operator

# Iterations of preconditioned CG that a plan counts on for one right-hand side.
_CG_ITERATIONS = 60.0
# Operations that are out of reach: some three hours of two cores.
_OUT_OF_REACH = 1e15


@dataclass(frozen=True)
class Choice:
    """A solver by name, the reason in words, and what the plan counted.

    Attributes:
        dense_bytes: of all p by p matrices at a time, in all processes.
        direct_flops: assembly, factor, inverse and all solves.
        cg_flops: the same solves by CG.
    """

    kind: str
    reason: str
    dense_bytes: float
    direct_flops: float
    cg_flops: float


def choose(
    kind: str,
    shape: BlockShape,
    *,
    n: int,
    d: int,
    k: int,
    test_points: int,
    memory: float,
    copies: float = 2.0,
) -> Choice:
    """Plan the solves of an audit.

    Args:
        kind: as in the config; anything but `auto` is kept, and refused where it cannot fit.
        shape: of the Hessian.
        n, d, k: training examples, features, logits.
        test_points: right-hand sides beside those of the leverages.
        memory: bytes that the dense matrices may take.
        copies: of the Hessian that there are at a time: with its factor, and its inverse; more on workers.

    Raises:
        RunError: `direct` was asked for and does not fit.
    """
    blocks, size, outputs = shape
    dense = 8.0 * copies * blocks * size**2
    pairs = blocks if blocks * outputs == k else k * (k - 1) / 2
    factor = blocks * size**3
    direct = n * d**2 * pairs + factor + 2.0 * outputs * blocks * size**2 * test_points
    inverse_fits = dense <= memory
    leverage_sides = min(size, n * (1 if blocks * outputs == k else k)) if inverse_fits else n * k
    cg = (leverage_sides + test_points) * _CG_ITERATIONS * 4.0 * n * d * k
    facts = f"dense matrices of {dense / 2**20:.0f} MiB within {memory / 2**20:.0f} MiB"
    if kind == "direct" and dense > memory:
        raise RunError(
            f"solver.kind: direct needs {dense / 2**20:.0f} MiB for dense matrices, and memory_limit leaves "
            f"{max(memory, 0.0) / 2**20:.0f} MiB. Remedy: raise memory_limit, or set solver.kind: cg."
        )
    if kind != "auto":
        return Choice(kind, "asked for in the config", dense, direct, cg)
    if min(cg, direct if dense <= memory else cg) > _OUT_OF_REACH:
        reason = f"an approximation: {cg:.2g} flops for cg" + (
            f", {direct:.2g} for direct" if dense <= memory else f", {facts.replace('within', 'exceed')}"
        )
        return Choice("ekfac", reason, dense, direct, cg)
    if dense > memory:
        return Choice("cg", facts.replace("within", "exceed"), dense, direct, cg)
    if cg < direct:
        return Choice("cg", f"{cg:.2g} flops against {direct:.2g} for direct", dense, direct, cg)
    return Choice("direct", f"{facts}; {direct:.2g} flops against {cg:.2g} for cg", dense, direct, cg)


def make_solver(
    kind: str,
    operator: Operator,
    config: SolverConfig,
    seed: int,
    dense_blocks: Callable[[], np.ndarray] | None = None,
    rounded: bool = False,
) -> InverseHessian:
    """The solver of a choice, with the options of its config section.

    Args:
        dense_blocks: gives the operator's dense blocks, where they may be known already; for `ekfac` None
            where there is no memory for them.
        rounded: whether these blocks are H only nearly.

    Raises:
        SolverError: the direct solver finds H not positive definite.
    """
    if kind == "direct":
        return Direct(operator, config.rtol, None if dense_blocks is None else dense_blocks(), rounded)
    if kind == "ekfac":
        most = config.max_iterations if isinstance(config, EkfacSolver) else 1000
        return Ekfac(operator, config.rtol, most, dense_blocks, rounded)
    if isinstance(config, LissaSolver):
        return Lissa(
            operator,
            config.rtol,
            config.scale,
            config.depth,
            config.repeat,
            config.batch_size,
            config.max_rounds,
            seed,
        )
    if isinstance(config, CgSolver):
        return ConjugateGradient(operator, config.rtol, config.max_iterations)
    return ConjugateGradient(operator, config.rtol)
