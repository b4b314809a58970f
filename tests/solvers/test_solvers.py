"""Solvers on matrices with chosen spectra, against numpy.linalg."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from influence_batch.errors import RunError
from influence_batch.solvers import (
    BlockShape,
    ConjugateGradient,
    Direct,
    InverseHessian,
    Lissa,
    SolverError,
    SolveResult,
    Status,
)
from influence_batch.solvers.lissa import largest_eigenvalue
from influence_batch.solvers.result import relative_residual
from tests.solvers.operators import (
    DenseOperator,
    assert_operator_matches,
    diagonal_blocks,
    from_blocks,
    matrix_with_spectrum,
    spectrum,
    split_into_terms,
)

P = 24
SOLVERS: dict[str, Callable[[DenseOperator], InverseHessian]] = {
    "direct": lambda operator: Direct(operator, rtol=1e-8),
    "cg": lambda operator: ConjugateGradient(operator, rtol=1e-8),
    "cg_plain": lambda operator: ConjugateGradient(operator, rtol=1e-8, preconditioned=False),
    "lissa": lambda operator: Lissa(operator, rtol=1e-8, depth=200),
}
# The condition numbers that each can bear within its default limits.
CASES = [
    (name, kind, condition)
    for name in SOLVERS
    for kind, condition in [
        ("flat", 1.0),
        ("geometric", 1e2),
        ("step", 1e2),
        ("geometric", 1e4),
        ("step", 1e6),
        ("geometric", 1e6),
    ]
    if not (name == "lissa" and condition > 1e2)
]


def operator_of(kind: str, condition: float, p: int = P, n: int = 6) -> DenseOperator:
    eigenvalues = spectrum(kind, p, condition)
    fixed = 0.5 * eigenvalues.min()
    matrix = matrix_with_spectrum(eigenvalues)
    return DenseOperator(split_into_terms(matrix - fixed * np.eye(p), n), fixed)


def block_operator(shape: BlockShape, condition: float = 30.0, n: int = 5) -> DenseOperator:
    """Different blocks of one spectrum, each with its copies."""
    parts = []
    for block in range(shape.blocks):
        matrix = matrix_with_spectrum(spectrum("geometric", shape.size, condition), seed=block)
        parts.append(split_into_terms(matrix, n, seed=block))
    terms = np.stack([from_blocks(np.stack([part[i] for part in parts]), shape.copies) for i in range(n)])
    return DenseOperator(terms, 0.1, shape)


def right_hand_sides(p: int = P, m: int = 4, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((p, m))


def assert_solved(result: SolveResult, dense: np.ndarray, b: np.ndarray, rtol: float) -> None:
    """The stopping criterion by column, on the true residual, and what the result says of it."""
    true = np.linalg.norm(b - dense @ result.solution, axis=0)
    norms = np.linalg.norm(b, axis=0)
    # The solver's own product may round otherwise than this one.
    rounding = 1e-15 * len(dense) * np.linalg.norm(dense, 2) * np.linalg.norm(result.solution, axis=0)
    assert np.all(true <= rtol * norms + rounding), true / norms
    np.testing.assert_allclose(result.residual * norms, true, rtol=1e-6, atol=2 * rounding.max())
    assert result.rtol == rtol
    assert result.status is Status.CONVERGED
    assert result.converged.all()
    assert result.require_converged() is result
    assert result.iterations.shape == result.residual.shape == (b.shape[1],)


def test_the_operator_matches_its_matrix() -> None:
    for shape in (BlockShape(1, 6, 1), BlockShape(3, 4, 1), BlockShape(1, 5, 3), BlockShape(2, 3, 2)):
        operator = block_operator(shape)
        assert_operator_matches(operator, operator.dense)
        vectors = right_hand_sides(operator.size)
        single = [operator.apply_sample(vectors, np.array([i])) for i in range(operator.n_terms)]
        np.testing.assert_allclose(np.mean(single, axis=0), operator.dense @ vectors, rtol=1e-12, atol=1e-13)


def test_spectra_are_as_asked_for() -> None:
    for kind, condition in (("flat", 1.0), ("geometric", 1e4), ("step", 1e2)):
        values = np.linalg.eigvalsh(operator_of(kind, condition).dense)
        np.testing.assert_allclose(values, np.sort(spectrum(kind, P, condition)), rtol=1e-9)


def test_the_check_refuses_operators_that_differ() -> None:
    dense = operator_of("geometric", 10.0).dense
    wrong = dense.copy()
    wrong[2, 3] += 1e-6
    with pytest.raises(AssertionError, match=r"(?s)H V, vector: 1 of 24 .*rtol 1e-10.*\[2, 0\]: .*ratio"):
        assert_operator_matches(DenseOperator(wrong[None]), dense)
    assert_operator_matches(DenseOperator(wrong[None]), dense, rtol=1e-4)
    with pytest.raises(AssertionError, match="size is 3, expected 24"):
        assert_operator_matches(DenseOperator(np.eye(3)[None]), dense)
    with pytest.raises(AssertionError, match="H V"):
        assert_operator_matches(DenseOperator(np.full((1, P, P), np.nan)), dense)


def test_the_check_refuses_faulty_applications() -> None:
    class Forgetful(DenseOperator):
        def apply(self, vectors: np.ndarray) -> np.ndarray:
            product = super().apply(vectors)
            return product if self.applied == 1 else 2 * product

    class Overwriting(DenseOperator):
        def apply(self, vectors: np.ndarray) -> np.ndarray:
            product = super().apply(vectors)
            vectors[:] = product
            return product

    class Flat(DenseOperator):
        def apply(self, vectors: np.ndarray) -> np.ndarray:
            return self.dense @ vectors[:, :1]

    class WrongBlocks(DenseOperator):
        def dense_blocks(self) -> np.ndarray:
            return super().dense_blocks() + 0.1

    dense = operator_of("geometric", 10.0).dense
    for faulty, message in (
        (Forgetful, "second call"),
        (Overwriting, "changed its argument"),
        (Flat, "shape"),
        (WrongBlocks, "dense blocks"),
    ):
        with pytest.raises(AssertionError, match=message):
            assert_operator_matches(faulty(dense[None]), dense)


@pytest.mark.parametrize(("name", "kind", "condition"), CASES)
def test_solutions(name: str, kind: str, condition: float) -> None:
    operator = operator_of(kind, condition)
    b = right_hand_sides()
    before = b.copy()
    result = SOLVERS[name](operator).solve(b)
    assert_solved(result, operator.dense, b, 1e-8)
    expected = np.linalg.solve(operator.dense, b)
    error = np.linalg.norm(result.solution - expected, axis=0) / np.linalg.norm(expected, axis=0)
    assert np.all(error <= 2 * condition * 1e-8)
    np.testing.assert_array_equal(b, before)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize(
    "shape", [BlockShape(3, 4, 1), BlockShape(1, 5, 3), BlockShape(2, 3, 2), BlockShape(1, 6, 1)], ids=str
)
def test_block_shapes(name: str, shape: BlockShape) -> None:
    operator = block_operator(shape)
    b = right_hand_sides(operator.size)
    inverse = SOLVERS[name](operator)
    result = inverse.solve(b)
    assert_solved(result, operator.dense, b, 1e-8)
    np.testing.assert_allclose(result.solution, np.linalg.solve(operator.dense, b), rtol=1e-6, atol=1e-7)
    blocks = inverse.inverse_blocks()
    expected = np.linalg.inv(operator.dense)
    assert blocks.shape == (shape.blocks, shape.size, shape.size)
    np.testing.assert_allclose(blocks, diagonal_blocks(expected, shape), rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(blocks, blocks.transpose(0, 2, 1))
    np.testing.assert_allclose(from_blocks(blocks, shape.copies), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("m", [1, 3, 40])
def test_any_number_of_columns(name: str, m: int) -> None:
    operator = operator_of("geometric", 20.0)
    b = right_hand_sides(m=m)
    assert_solved(SOLVERS[name](operator).solve(b), operator.dense, b, 1e-8)


@pytest.mark.parametrize("name", SOLVERS)
def test_no_columns(name: str) -> None:
    result = SOLVERS[name](operator_of("geometric", 20.0)).solve(np.zeros((P, 0)))
    assert result.solution.shape == (P, 0)
    assert result.status is Status.CONVERGED


@pytest.mark.parametrize("name", SOLVERS)
def test_zero_columns_are_solved_by_zero(name: str) -> None:
    operator = operator_of("geometric", 20.0)
    b = right_hand_sides()
    b[:, [0, 2]] = 0.0
    result = SOLVERS[name](operator).solve(b)
    assert_solved(result, operator.dense, b, 1e-8)
    np.testing.assert_array_equal(result.solution[:, [0, 2]], 0.0)
    np.testing.assert_array_equal(result.residual[[0, 2]], 0.0)
    nothing = SOLVERS[name](operator).solve(np.zeros((P, 2)))
    np.testing.assert_array_equal(nothing.solution, 0.0)
    assert nothing.status is Status.CONVERGED


@pytest.mark.parametrize("name", SOLVERS)
def test_columns_of_wildly_different_norms(name: str) -> None:
    operator = operator_of("geometric", 50.0)
    b = right_hand_sides(m=6) * np.array([1e-12, 1e9, 1.0, 1e-6, 1e4, 1e-150])
    assert_solved(SOLVERS[name](operator).solve(b), operator.dense, b, 1e-8)


@pytest.mark.parametrize("name", SOLVERS)
def test_an_eigenvector_among_hard_columns(name: str) -> None:
    """A column that is done after one term stays right while the others go on."""
    operator = operator_of("geometric", 50.0)
    _, vectors = np.linalg.eigh(operator.dense)
    b = np.concatenate([vectors[:, [0, -1]], right_hand_sides()], axis=1)
    assert_solved(SOLVERS[name](operator).solve(b), operator.dense, b, 1e-8)


@pytest.mark.parametrize("name", SOLVERS)
def test_whole_numbers_are_solved_as_reals(name: str) -> None:
    operator = operator_of("geometric", 20.0)
    b = np.arange(2 * P).reshape(P, 2) - 7
    result = SOLVERS[name](operator).solve(b)
    assert result.solution.dtype == np.float64
    assert_solved(result, operator.dense, b, 1e-8)


@pytest.mark.parametrize("name", SOLVERS)
@pytest.mark.parametrize("size", [1e-12, 1e12])
def test_the_scale_of_h_does_not_matter(name: str, size: float) -> None:
    plain = operator_of("geometric", 20.0)
    operator = DenseOperator(size * plain.terms, size * plain.fixed)
    b = right_hand_sides()
    assert_solved(SOLVERS[name](operator).solve(b), operator.dense, b, 1e-8)


def test_require_converged_says_how_many_how_bad_and_what_to_do() -> None:
    result = SolveResult(
        np.zeros((3, 4)),
        Status.MAX_ITERATIONS,
        np.array([1, 9, 4, 2]),
        np.array([1e-9, 0.25, 1e-3, 0.0]),
        1e-6,
        "scale 3",
    )
    np.testing.assert_array_equal(result.converged, [True, False, False, True])
    with pytest.raises(SolverError) as caught:
        result.require_converged()
    message = str(caught.value)
    assert "max_iterations: 2 of 4 columns missed the tolerance 1e-06" in message
    assert "worst residual is 0.25 after 9 iterations; scale 3." in message
    assert f"Remedy: {Status.MAX_ITERATIONS.value}." in message
    assert isinstance(caught.value, RunError)


def test_relative_residual() -> None:
    b = np.array([[3.0, 0.0, 0.0, 1.0], [4.0, 0.0, 0.0, 0.0]])
    r = np.array([[1.0, 0.0, 1.0, np.nan], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(relative_residual(r, b), [0.2, 0.0, np.inf, np.inf])


def indefinite() -> DenseOperator:
    values = spectrum("geometric", P, 10.0)
    values[3] = -0.1
    return DenseOperator(matrix_with_spectrum(values)[None])


def test_direct_refuses_what_is_not_positive_definite() -> None:
    with pytest.raises(SolverError, match=r"not positive definite.*model\.l2"):
        Direct(indefinite())
    with pytest.raises(SolverError, match="not finite"):
        Direct(DenseOperator(np.full((1, 3, 3), np.inf)))


@pytest.mark.parametrize("preconditioned", [False, True])
def test_cg_says_what_is_not_positive_definite(preconditioned: bool) -> None:
    result = ConjugateGradient(indefinite(), preconditioned=preconditioned).solve(right_hand_sides())
    assert result.status is Status.NOT_POSITIVE_DEFINITE
    assert not result.converged.any()
    with pytest.raises(SolverError, match=r"not_positive_definite: 4 of 4.*no unique optimum"):
        result.require_converged()


def test_direct_with_rounded_blocks_solves_the_operator_s_own_system() -> None:
    operator = operator_of("geometric", 1e3)
    rounded = operator.dense_blocks().astype(np.float32).astype(np.float64)
    sides = right_hand_sides()
    result = Direct(operator, rtol=1e-11, blocks=rounded.copy(), rounded=True).solve(sides)
    residual = sides - operator.dense @ result.solution
    assert np.all(np.linalg.norm(residual, axis=0) <= 1e-11 * np.linalg.norm(sides, axis=0))
    assert result.iterations.max() > 1
    np.testing.assert_allclose(result.solution, np.linalg.solve(operator.dense, sides), rtol=1e-8)
    # Taken for H, they are another matrix.
    other = Direct(operator, rtol=1e-11, blocks=rounded).solve(sides).solution
    assert not np.allclose(other, result.solution, rtol=1e-8, atol=0.0)


def test_direct_says_where_it_missed_the_tolerance() -> None:
    operator = operator_of("geometric", 1e6)
    result = Direct(operator, rtol=1e-30).solve(right_hand_sides())
    assert result.status is Status.ILL_CONDITIONED
    with pytest.raises(SolverError, match=r"ill_conditioned: 4 of 4"):
        result.require_converged()


@pytest.mark.parametrize("limit", [1, 2, 5, 10])
@pytest.mark.parametrize("preconditioned", [False, True])
def test_cg_with_too_few_iterations(limit: int, preconditioned: bool) -> None:
    operator = operator_of("geometric", 1e4)
    b = right_hand_sides(m=5)
    b[:, 1] = 0.0
    result = ConjugateGradient(operator, max_iterations=limit, preconditioned=preconditioned).solve(b)
    assert result.status is Status.MAX_ITERATIONS
    np.testing.assert_array_equal(result.converged, [False, True, False, False, False])
    np.testing.assert_array_equal(result.iterations, np.where(result.converged, 0, limit))
    true = np.linalg.norm(b - operator.dense @ result.solution, axis=0)
    np.testing.assert_allclose(result.residual * np.linalg.norm(b, axis=0), true, rtol=1e-9)
    with pytest.raises(SolverError, match=r"max_iterations: 4 of 5 columns.*cg: max_iterations"):
        result.require_converged()


def test_cg_refuses_to_run_without_steps() -> None:
    with pytest.raises(ValueError, match="max_iterations is 0, expected 1 or more"):
        ConjugateGradient(operator_of("flat", 1.0), max_iterations=0)


def test_cg_names_a_tolerance_that_rounding_forbids() -> None:
    result = ConjugateGradient(operator_of("geometric", 1e4), rtol=1e-20).solve(right_hand_sides())
    assert result.status is Status.ILL_CONDITIONED
    assert result.residual.max() < 1e-10


def test_the_preconditioner_spares_iterations() -> None:
    size = np.geomspace(1.0, 1e3, P)
    near = matrix_with_spectrum(spectrum("geometric", P, 4.0))
    operator = DenseOperator((size[:, None] * near * size)[None])
    b = right_hand_sides()
    with_it, without = (
        ConjugateGradient(operator, preconditioned=flag).solve(b).require_converged().iterations.max()
        for flag in (True, False)
    )
    assert with_it < 0.5 * without


@pytest.mark.parametrize("kind", ["flat", "geometric", "step"])
@pytest.mark.parametrize("condition", [1.5, 1e2, 1e6])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_largest_eigenvalue(kind: str, condition: float, seed: int) -> None:
    operator = operator_of(kind, condition, p=40)
    largest = np.linalg.eigvalsh(operator.dense)[-1]
    estimate = largest_eigenvalue(operator, seed)
    assert 0.99 * largest <= estimate <= largest * (1 + 1e-12)


def test_an_eigenvalue_that_hides_in_a_random_start_does_no_harm() -> None:
    """One eigenvalue of 1 and 99 of 0.9: power iteration may report 0.9, the series converges."""
    operator = DenseOperator(matrix_with_spectrum(np.append(np.full(99, 0.9), 1.0))[None])
    b = right_hand_sides(100)
    for seed in range(5):
        assert 0.9 <= largest_eigenvalue(operator, seed) <= 1.0 + 1e-12
        lissa = Lissa(operator, rtol=1e-8, seed=seed)
        assert lissa.scale > 0.9
        assert_solved(lissa.solve(b), operator.dense, b, 1e-8)


def test_lissa_finds_its_scale() -> None:
    operator = operator_of("geometric", 50.0)
    lissa = Lissa(operator, rtol=1e-8)
    assert 1.0 < lissa.scale < 1.2
    b = right_hand_sides()
    result = lissa.solve(b)
    assert_solved(result, operator.dense, b, 1e-8)
    assert "scale 1." in result.detail


@pytest.mark.parametrize("m", [1, 4])
@pytest.mark.parametrize("scale", [0.02, 0.3, 0.45])
def test_lissa_diverges_below_half_the_largest_eigenvalue(scale: float, m: int) -> None:
    result = Lissa(operator_of("geometric", 10.0), scale=scale).solve(right_hand_sides(m=m))
    assert result.status is Status.DIVERGED
    assert not result.converged.any()
    with pytest.raises(SolverError, match=r"diverged: \d of \d.*raise solver\.scale above"):
        result.require_converged()


@pytest.mark.parametrize("scale", [0.55, 1.0, 3.0])
def test_lissa_converges_above_half_the_largest_eigenvalue(scale: float) -> None:
    operator = operator_of("geometric", 10.0)
    b = right_hand_sides()
    result = Lissa(operator, rtol=1e-8, scale=scale).solve(b)
    assert_solved(result, operator.dense, b, 1e-8)


def test_lissa_with_a_scale_that_some_columns_bear() -> None:
    """A column without a part in the largest eigenvalues converges where another diverges."""
    operator = operator_of("geometric", 10.0)
    values, vectors = np.linalg.eigh(operator.dense)
    quiet = vectors[:, values < 0.5].sum(axis=1)
    b = np.stack([1e9 * quiet, right_hand_sides()[:, 0]], axis=1)
    result = Lissa(operator, rtol=1e-6, scale=0.45, max_rounds=50).solve(b)
    assert result.status is Status.DIVERGED
    assert not result.converged[1]


@pytest.mark.parametrize("start", [0.4, 0.1, 1e-3])
@pytest.mark.parametrize("batch_size", [3, 1000])
def test_lissa_recovers_from_an_estimate_that_is_too_small(start: float, batch_size: int) -> None:
    operator = operator_of("geometric", 20.0, n=40)
    lissa = Lissa(operator, rtol=1e-8, batch_size=batch_size)
    assert not lissa._fixed_scale
    lissa._scale = start
    b = right_hand_sides() * np.array([1e-9, 1.0, 1e9, 1e3])
    assert_solved(lissa.solve(b), operator.dense, b, 1e-8)
    assert lissa.scale > 0.5


def test_lissa_rounds_take_out_the_noise_of_mini_batches() -> None:
    operator = operator_of("geometric", 10.0, n=400)
    b = right_hand_sides()
    lissa = Lissa(operator, rtol=1e-10, batch_size=100, depth=40)
    result = lissa.solve(b)
    assert_solved(result, operator.dense, b, 1e-10)
    assert operator.samples, "no mini-batch was drawn"
    assert lissa.batch_size < operator.n_terms, "it took the whole data"
    one_round = Lissa(operator, rtol=1e-10, batch_size=100, depth=40, max_rounds=1).solve(b)
    assert one_round.residual.min() > 1e-4, "the noise of one round should show"


def test_lissa_draws_a_larger_batch_where_noise_keeps_it_from_converging() -> None:
    operator = operator_of("geometric", 20.0, n=100)
    b = right_hand_sides()
    lissa = Lissa(operator, rtol=1e-8, batch_size=2)
    assert_solved(lissa.solve(b), operator.dense, b, 1e-8)
    assert lissa.batch_size > 2


def test_lissa_with_repeats_averages() -> None:
    operator = operator_of("geometric", 10.0, n=200)
    b = right_hand_sides(m=30)
    one, many = (
        Lissa(operator, scale=1.1, batch_size=40, repeat=r, max_rounds=1, depth=40).solve(b).residual.mean()
        for r in (1, 16)
    )
    assert many < 0.5 * one


def test_lissa_with_too_few_rounds() -> None:
    operator = operator_of("geometric", 100.0)
    b = right_hand_sides()
    result = Lissa(operator, rtol=1e-8, depth=20, max_rounds=3).solve(b)
    assert result.status is Status.MAX_ITERATIONS
    assert not result.converged.any()
    np.testing.assert_array_equal(result.iterations, 60)
    true = np.linalg.norm(b - operator.dense @ result.solution, axis=0) / np.linalg.norm(b, axis=0)
    np.testing.assert_allclose(result.residual, true, rtol=1e-9)
    with pytest.raises(SolverError, match="lissa: depth or max_rounds"):
        result.require_converged()


def test_lissa_draws_from_its_seed_alone() -> None:
    b = right_hand_sides()

    def draws(seed: int) -> list[np.ndarray]:
        operator = operator_of("geometric", 10.0, n=50)
        Lissa(operator, scale=1.1, batch_size=10, max_rounds=2, depth=5, repeat=2, seed=seed).solve(b)
        return operator.samples

    one, again, other = draws(3), draws(3), draws(4)
    assert [sample.tolist() for sample in one] == [sample.tolist() for sample in again]
    assert [sample.tolist() for sample in one] != [sample.tolist() for sample in other]
    assert len({tuple(sample) for sample in one}) == len(one), "rounds and repeats draw anew"
    assert np.all(np.concatenate(one) < 50)


def test_lissa_with_all_terms_is_the_neumann_series() -> None:
    operator = operator_of("geometric", 10.0, n=6)
    b = right_hand_sides()
    result = Lissa(operator, scale=1.2, batch_size=6, depth=7, max_rounds=1).solve(b)
    shrink, total, power = np.eye(P) - operator.dense / 1.2, np.zeros((P, P)), np.eye(P)
    for _ in range(8):
        total, power = total + power, power @ shrink
    np.testing.assert_allclose(result.solution, total @ b / 1.2, rtol=1e-10, atol=1e-12)
    assert not operator.samples
