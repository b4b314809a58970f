"""What the direct solver does beside what every solver does."""

from __future__ import annotations

import numpy as np
import pytest

from influence_batch.solvers import BlockShape, Direct, SolverError, direct
from tests.solvers.operators import from_blocks
from tests.solvers.test_solvers import assert_solved, block_operator, right_hand_sides


@pytest.mark.parametrize(
    ("shape", "alone"),
    [
        (BlockShape(1, 9, 1), [[0, 4, 8]]),
        (BlockShape(3, 4, 1), [[1], [], [0, 1, 2, 3]]),
        (BlockShape(2, 5, 2), [[2, 3], [4]]),
    ],
    ids=str,
)
def test_direct_factors_only_what_has_entries_beside_the_diagonal(
    shape: BlockShape, alone: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    operator = block_operator(shape)
    for number, rows in enumerate(alone):
        for copy in range(shape.copies):
            start = (number * shape.copies + copy) * shape.size
            for row in rows:
                others = np.delete(np.arange(operator.size), start + row)
                operator.dense[start + row, others] = operator.dense[others, start + row] = 0.0
    factored: list[int] = []
    factor = direct.cho_factor
    monkeypatch.setattr(
        direct, "cho_factor", lambda a, **more: (factored.append(len(a)), factor(a, **more))[1]
    )
    inverse = Direct(operator)
    # One of a block is always left.
    assert factored == [max(shape.size - len(rows), 1) for rows in alone]
    b = right_hand_sides(operator.size)
    result = inverse.solve(b)
    assert_solved(result, operator.dense, b, 1e-8)
    expected = np.linalg.inv(operator.dense)
    np.testing.assert_allclose(result.solution, expected @ b, rtol=1e-10, atol=1e-12)
    blocks = inverse.inverse_blocks()
    np.testing.assert_allclose(from_blocks(blocks, shape.copies), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_array_equal(blocks == 0.0, blocks.transpose(0, 2, 1) == 0.0)
    operator.dense[0, 0] = -1.0
    with pytest.raises(SolverError, match="not positive definite"):
        Direct(operator)
