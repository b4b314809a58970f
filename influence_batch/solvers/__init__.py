"""Inverse-Hessian-vector products: one file an algorithm, all on operators, none on models."""

from influence_batch.solvers.conjugate_gradient import ConjugateGradient
from influence_batch.solvers.deferred import Deferred
from influence_batch.solvers.direct import Direct
from influence_batch.solvers.ekfac import Ekfac
from influence_batch.solvers.lissa import Lissa
from influence_batch.solvers.operator import BlockShape, InverseHessian, Kronecker, Operator
from influence_batch.solvers.result import SolverError, SolveResult, Status

__all__ = [
    "BlockShape",
    "ConjugateGradient",
    "Deferred",
    "Direct",
    "Ekfac",
    "InverseHessian",
    "Kronecker",
    "Lissa",
    "Operator",
    "SolveResult",
    "SolverError",
    "Status",
]
