"""The noise matrix: recovered where the truth is known, and never a cause of ties."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp, softmax

from influence_batch.detection import (
    Channel,
    NoiseModel,
    TrustedError,
    error_flows,
    keep_for_refit,
    rank_by_doubt,
    read_classes,
    select_suspects,
)
from influence_batch.detection.noise_matrix import (
    em_statistics,
    posterior,
    uniform_noise,
)
from influence_batch.detection.suspects import fit_rows, fit_sample


def _world(
    n: int, matrix: np.ndarray, temperature: float, sharpness: float = 4.0, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (n, k), true and given labels drawn from the very model that is fitted."""
    random = np.random.default_rng(seed)
    k = len(matrix)
    scores = sharpness * random.standard_normal((n, k))
    p = softmax(scores / temperature, axis=1)
    true = np.array([random.choice(k, p=row) for row in p])
    given = np.array([random.choice(k, p=matrix[label]) for label in true])
    return scores, true, given


def _noise(scores: np.ndarray, given: np.ndarray) -> NoiseModel:
    channel = Channel(scores, given)
    found = channel.believable_noise(channel.without_noise())
    assert found is not None
    return found


def test_channel_is_recovered_without_its_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    """What maximum likelihood finds by itself; the prior for even noise has its own tests."""
    monkeypatch.setattr("influence_batch.detection.noise_matrix._RARE", 0.0)
    matrix = np.array([[0.9, 0.08, 0.02], [0.01, 0.97, 0.02], [0.2, 0.0, 0.8]])
    scores, true, given = _world(20_000, matrix, temperature=0.7)
    model = _noise(scores, given)
    assert model.temperature == pytest.approx(0.7, rel=0.05)
    np.testing.assert_allclose(model.matrix, matrix, atol=0.015)
    reading = read_classes(scores, given)
    wrong = true != given
    assert reading.estimated_errors == pytest.approx(wrong.sum(), rel=0.03)
    for low in np.arange(0.0, 1.0, 0.2):
        inside = (reading.p_mislabeled >= low) & (reading.p_mislabeled < low + 0.2)
        if inside.sum() > 200:
            assert reading.p_mislabeled[inside].mean() == pytest.approx(wrong[inside].mean(), abs=0.05)


def test_errors_are_counted_and_probabilities_calibrated() -> None:
    matrix = np.array([[0.9, 0.08, 0.02], [0.01, 0.97, 0.02], [0.2, 0.0, 0.8]])
    scores, true, given = _world(20_000, matrix, temperature=0.7)
    assert _noise(scores, given).temperature == pytest.approx(0.7, rel=0.1)
    reading = read_classes(scores, given)
    assert reading.basis == "noise matrix"
    assert reading.noise is not None
    wrong = true != given
    # One class's errors are five times another's here: the matrix is drawn towards even noise.
    assert reading.estimated_errors == pytest.approx(wrong.sum(), rel=0.08)
    assert reading.low < wrong.sum() < reading.high
    bins = np.minimum((15 * reading.p_mislabeled).astype(int), 14)
    gaps = [abs(reading.p_mislabeled[bins == i].sum() - wrong[bins == i].sum()) for i in range(15)]
    assert sum(gaps) / len(wrong) < 0.02
    flows = error_flows(scores, given, reading)
    assert flows.sum() == pytest.approx(reading.estimated_errors)
    for j, g in [(0, 1), (2, 0)]:
        assert flows[j, g] == pytest.approx(np.count_nonzero((true == j) & (given == g)), rel=0.15)


@pytest.mark.parametrize("seed", range(3))
def test_a_pattern_of_errors_is_believed_where_it_earns_its_entries(seed: int) -> None:
    """Errors that go to all classes alike leave T even; some to one partner do not."""
    even = uniform_noise(5, 0.06)
    scores, _, given = _world(6_000, even, temperature=0.7, seed=seed)
    found = _noise(scores, given).matrix
    rates = found[~np.eye(5, dtype=bool)]
    np.testing.assert_allclose(rates, rates[0], rtol=1e-9)
    partner = even.copy()
    partner[1, 2], partner[1, 1] = 0.1, 0.9 - 3 * even[1, 0]
    scores, _, given = _world(6_000, partner, temperature=0.7, seed=seed)
    found = _noise(scores, given).matrix
    assert found[1, 2] > 3 * found[2, 1]


@pytest.mark.parametrize("rate", [0.03, 0.1, 0.3])
def test_even_noise_is_counted(rate: float) -> None:
    matrix = np.full((4, 4), rate / 3) + np.eye(4) * (1 - 4 * rate / 3)
    scores, true, given = _world(20_000, matrix, temperature=0.7, sharpness=6.0)
    reading = read_classes(scores, given)
    assert reading.estimated_errors == pytest.approx(np.count_nonzero(true != given), rel=0.05)


def test_em_step_counts_are_those_of_a_loop() -> None:
    random = np.random.default_rng(1)
    p = random.dirichlet(np.ones(3), 40)
    given = random.integers(0, 3, 40)
    matrix, b = random.dirichlet(np.ones(3), 3), 0.2
    expected, near, likelihood = np.zeros((3, 3)), 0.0, 0.0
    border = np.zeros(40)
    for i, (row, g) in enumerate(zip(p, given, strict=True)):
        border[i] = sum(row[j] * row[g] / (1.0 - row[j]) for j in range(3) if j != g)
        joint = (1 - b) * row * matrix[:, g]
        total = joint.sum() + b * border[i]
        likelihood += np.log(total) / 40
        expected[:, g] += joint / total
        near += b * border[i] / total
    groups = Channel(np.log(p), given).groups(1.0, with_border=True)
    for g, group in enumerate(groups):
        np.testing.assert_allclose(group.p, p[given == g], rtol=1e-12)
        np.testing.assert_allclose(group.border, border[given == g], rtol=1e-12)
    found = em_statistics(groups, matrix, b)
    np.testing.assert_allclose(found.counts, expected, rtol=1e-12)
    assert found.log_likelihood == pytest.approx(likelihood)
    assert found.near == pytest.approx(near)
    assert found.counts.sum() + found.near == pytest.approx(40)
    # Derivatives of the sum by b, by differences.
    step = 1e-4
    below, above = (40 * em_statistics(groups, matrix, b + sign * step).log_likelihood for sign in (-1, 1))
    assert found.bend == pytest.approx(-(below + above - 2 * 40 * likelihood) / step**2, rel=1e-4)
    slope = near / b - (40 - near) / (1 - b)
    assert slope == pytest.approx((above - below) / (2 * step), rel=1e-4)


def test_a_channel_is_a_distribution_of_given_labels() -> None:
    """Over all labels that could be given, p(given | x) sums to 1, also where one class is all but sure."""
    random = np.random.default_rng(2)
    scores = 30.0 * random.standard_normal((50, 4))
    model = NoiseModel(0.7, random.dirichlet(np.ones(4), 4), 0.3, 0.0)
    total = np.zeros(50)
    for g in range(4):
        found = posterior(scores, np.full(50, g), model)
        total += np.exp(found.log_wrong) + np.exp(found.log_right)
    np.testing.assert_allclose(total, 1.0, rtol=1e-9)


@pytest.mark.parametrize("border", [0.0, 0.3])
@pytest.mark.parametrize("rates", [True, False])
@pytest.mark.parametrize("sharpness", [1.0, 30.0, 3000.0])
def test_posterior_is_the_formula(border: float, rates: bool, sharpness: float) -> None:
    """In logarithms of any size; a channel without rates has errors near borders only."""
    random = np.random.default_rng(3)
    k = 4
    matrix = random.dirichlet(np.ones(k), k) if rates else np.eye(k)
    if not rates and border == 0.0:
        pytest.skip("a channel without errors")
    model, scores = NoiseModel(0.7, matrix, border, 0.0), sharpness * random.standard_normal((60, k))
    given = random.integers(0, k, 60)
    found = posterior(scores, given, model, shares=True)
    log_p = log_softmax(scores / 0.7, axis=1)
    assert found.shares is not None
    for i, g in enumerate(given):
        others = [j for j in range(k) if j != g]
        rest = [logsumexp([log_p[i, a] for a in range(k) if a != j]) for j in others]
        with np.errstate(divide="ignore"):
            joint = [
                np.logaddexp(
                    np.log(matrix[j, g]) + np.log1p(-border) + log_p[i, j],
                    np.log(border) + log_p[i, g] + log_p[i, j] - log_rest,
                )
                for j, log_rest in zip(others, rest, strict=True)
            ]
        assert found.log_wrong[i] == pytest.approx(logsumexp(joint), rel=1e-9, abs=1e-9)
        right = np.log(matrix[g, g]) + np.log1p(-border) + log_p[i, g]
        assert found.log_right[i] == pytest.approx(right, rel=1e-9, abs=1e-9)
        assert found.log_p[i] == pytest.approx(log_p[i, g], rel=1e-9, abs=1e-12)
        expected = np.exp(np.array(joint) - logsumexp(joint))
        np.testing.assert_allclose(found.shares[i, others], expected, rtol=1e-7, atol=1e-12)
        assert found.shares[i, g] == 0.0


def test_even_noise_is_what_em_over_matrices_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept to one rate by hand, from the same start."""
    monkeypatch.setattr("influence_batch.detection.noise_matrix._EM_STEPS", 30)
    scores, _, given = _world(2_000, uniform_noise(5, 0.1), temperature=0.7)
    channel = Channel(scores, given)
    groups = channel.groups(0.9, with_border=True)
    matrix, border = uniform_noise(5, 0.05), 0.02
    for _ in range(30):
        step = em_statistics(groups, matrix, border)
        matrix = uniform_noise(5, 1.0 - np.trace(step.counts) / step.counts.sum())
        border, likelihood = step.near / len(given), step.log_likelihood
    found = channel.at(0.9, even=True)
    np.testing.assert_allclose(found.matrix, matrix, rtol=1e-9)
    assert found.border == pytest.approx(border, rel=1e-9)
    assert found.log_likelihood == pytest.approx(likelihood, rel=1e-12)


@pytest.mark.parametrize("at_borders", [0.0, 0.002, 0.2])
@pytest.mark.parametrize("start", [1e-5, 0.02, 0.4])
def test_steps_for_noise_near_borders_end_where_em_does_at_last(
    at_borders: float, start: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores, truth, given = _world(4_000, uniform_noise(4, 0.05), temperature=0.8)
    random = np.random.default_rng(1)
    others = scores.copy()
    others[np.arange(len(truth)), truth] = -np.inf
    flipped = random.random(len(given)) < at_borders
    given = np.where(flipped, others.argmax(axis=1), given)
    channel = Channel(scores, given)
    steps: list[float] = []

    def counted(groups: Any, matrix: np.ndarray, border: float) -> Any:
        steps.append(border)
        return em_statistics(groups, matrix, border)

    monkeypatch.setattr("influence_batch.detection.noise_matrix.em_statistics", counted)
    found = channel.at(0.8, border=start)
    assert len(steps) < 60
    # The same without longer steps: hundreds of them.
    monkeypatch.setattr(
        "influence_batch.detection.noise_matrix._newton_step", lambda border, found, n: found.near / n
    )
    monkeypatch.setattr("influence_batch.detection.noise_matrix._EM_STEPS", 20_000)
    monkeypatch.setattr("influence_batch.detection.noise_matrix._EM_TOLERANCE", 1e-12)
    slow = channel.at(0.8, border=0.02)
    assert found.log_likelihood == pytest.approx(slow.log_likelihood, abs=3e-7)
    assert found.border == pytest.approx(slow.border, abs=3e-4)
    np.testing.assert_allclose(found.matrix, slow.matrix, atol=3e-4)


def test_a_search_ends_near_the_whole_of_em() -> None:
    scores, _, given = _world(3000, np.eye(4) * 0.88 + 0.03, temperature=1.3)
    channel = Channel(scores, given)
    for temperature in (0.8, 1.3, 2.0):
        searched, whole = (channel.at(temperature, search=search) for search in (True, False))
        assert searched.log_likelihood == pytest.approx(whole.log_likelihood, abs=3e-5)


@pytest.mark.parametrize("off", [0.05, 0.7, 1.0, 1.4, 20.0])
def test_a_search_from_a_known_temperature_finds_what_the_grid_does(
    off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also from one that is far off; from a near one in fewer steps."""
    scores, _, given = _world(5000, uniform_noise(4, 0.1), temperature=0.7)
    channel = Channel(scores, given)
    plain = channel.without_noise()
    tried: list[float] = []
    at = Channel.at

    def counted(self: Channel, temperature: float, **more: Any) -> NoiseModel:
        tried.append(temperature)
        return at(self, temperature, **more)

    monkeypatch.setattr(Channel, "at", counted)
    by_grid = channel.believable_noise(plain)
    steps = len(tried)
    assert by_grid is not None
    found = channel.believable_noise(plain, off * by_grid.temperature)
    assert found is not None
    # Both end on a spacing of 2% (here 1.5% apart); the share moves by half of that.
    assert found.temperature == pytest.approx(by_grid.temperature, rel=0.02)
    assert channel.error_share(found) == pytest.approx(channel.error_share(by_grid), rel=0.01)
    np.testing.assert_allclose(found.matrix, by_grid.matrix, atol=2e-3)
    assert found.log_likelihood == pytest.approx(by_grid.log_likelihood, abs=1e-5)
    if 0.5 < off < 2.0:
        assert len(tried) - steps < steps


def test_likelihood_only_rises_with_the_temperature_fitted() -> None:
    scores, _, given = _world(3000, np.eye(4) * 0.88 + 0.03, temperature=1.3)
    best, channel = _noise(scores, given), Channel(scores, given)
    for temperature in (0.3, 0.8, 2.0, 5.0):
        assert channel.at(temperature, border=0.0).log_likelihood <= best.log_likelihood + 1e-4


def _border_world(n: int = 6000, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, true and given labels; a quarter of the fifth nearest to a border is given the next class.

    Left-out scores are less sure than the world is, as those of a model that has seen the flips.
    """
    random = np.random.default_rng(seed)
    clean = 6.0 * random.standard_normal((n, 4))
    true = clean.argmax(axis=1)
    ordered = np.sort(clean, axis=1)
    zone = np.argsort(ordered[:, -1] - ordered[:, -2])[: n // 5]
    flipped = random.choice(zone, n // 20, replace=False)
    given = true.copy()
    given[flipped] = np.argsort(clean, axis=1)[flipped, -2]
    return clean + 0.1 * random.standard_normal(clean.shape), true, given


def test_noise_at_borders_is_between_the_readings() -> None:
    scores, true, given = _border_world()
    reading = read_classes(scores, given)
    wrong = true != given
    assert reading.basis == "prior"
    assert reading.low <= wrong.sum() <= reading.high
    listed = reading.p_mislabeled >= 0.5
    assert np.count_nonzero(listed & wrong) / listed.sum() > 0.5
    assert np.count_nonzero(listed & wrong) / wrong.sum() > 0.5


def test_a_trusted_error_tells_errors_from_overlap() -> None:
    """The same scores, once with labels that are flipped and once with classes that overlap as much."""
    scores, true, given = _border_world()
    wrong = int(np.count_nonzero(true != given))
    hard = float(np.mean(scores.argmax(axis=1) != true))
    flipped = read_classes(scores, given, trusted=TrustedError(hard, 2000))
    assert flipped.basis == "trusted test set"
    assert flipped.estimated_errors == pytest.approx(wrong, rel=0.2)
    assert flipped.low < wrong < flipped.high
    overlapping = read_classes(
        scores, given, trusted=TrustedError(float(np.mean(scores.argmax(axis=1) != given)), 2000)
    )
    assert overlapping.estimated_errors < 0.1 * wrong


def test_clean_labels_give_a_short_list_and_a_ranking_without_ties() -> None:
    scores, _, given = _world(5000, np.eye(3), temperature=1.0, sharpness=8.0)
    reading = read_classes(scores, given)
    assert reading.basis == "prior"
    assert reading.low == 0.0
    assert reading.estimated_errors < np.count_nonzero(scores.argmax(axis=1) != given)
    assert reading.low <= reading.estimated_errors <= reading.high
    assert len(np.unique(reading.doubt)) == len(given)
    assert np.all(reading.p_mislabeled > 0)


def test_sure_disagreements_outrank_unsure_ones() -> None:
    """Where p_mislabeled is 1 to rounding for several examples, the log-odds still tell them apart."""
    scores, _, given = _world(2000, np.eye(2) * 0.9 + 0.05, temperature=1.0, sharpness=10.0)
    scores[0], scores[1], given[:2] = (0.0, 300.0), (0.0, 200.0), 0
    reading = read_classes(scores, given)
    rank = rank_by_doubt(reading)
    assert reading.p_mislabeled[0] == reading.p_mislabeled[1] == 1.0
    assert rank[:2].tolist() == [1, 2]


def test_suggestion_is_the_most_probable_other_label() -> None:
    matrix = np.eye(3) * 0.85 + 0.05
    scores, _, given = _world(1000, matrix, temperature=1.0)
    reading = read_classes(scores, given)
    assert np.all(reading.suggested != given)
    assert reading.noise is not None
    assert reading.noise.border == 0.0
    joint = softmax(scores / reading.noise.temperature, axis=1) * reading.noise.matrix[:, given].T
    joint /= joint.sum(axis=1, keepdims=True)
    at = np.arange(len(given))
    np.testing.assert_allclose(reading.p_mislabeled, 1.0 - joint[at, given], atol=1e-12)
    np.testing.assert_allclose(reading.suggested_probability, joint[at, reading.suggested], rtol=1e-9)
    joint[at, given] = -1.0
    np.testing.assert_array_equal(reading.suggested, joint.argmax(axis=1))


def test_selection_by_threshold_and_by_budget() -> None:
    scores, _, given = _world(500, np.eye(2) * 0.8 + 0.1, temperature=1.0)
    reading = read_classes(scores, given)
    rank = rank_by_doubt(reading)
    assert sorted(rank) == list(range(1, 501))
    chosen = select_suspects(reading, rank, 0.7, None)
    np.testing.assert_array_equal(chosen, reading.p_mislabeled >= 0.7)
    assert sorted(rank[select_suspects(reading, rank, 0.7, 13)]) == list(range(1, 14))


@pytest.mark.parametrize("target", [0.6, 0.9, 1.0])
def test_selection_by_precision(target: float) -> None:
    scores, _, given = _world(2000, np.eye(2) * 0.8 + 0.1, temperature=1.0)
    reading = read_classes(scores, given)
    rank = rank_by_doubt(reading)
    chosen = select_suspects(reading, rank, 0.5, None, target)
    assert sorted(rank[chosen]) == list(range(1, chosen.sum() + 1))
    p = np.sort(reading.p_mislabeled)[::-1]
    if chosen.any():
        assert p[: chosen.sum()].mean() >= target - 1e-9
    assert p[: chosen.sum() + 1].mean() < target


def test_refit_keeps_half_of_every_label() -> None:
    """A label most of which is doubted must not vanish from the refit."""
    scores, _, given = _world(600, np.eye(3) * 0.9 + 0.1 / 3, temperature=1.0, sharpness=6.0)
    given[:] = scores.argmax(axis=1)
    rare = np.flatnonzero(given == 2)[:20]
    given[given == 2] = 1
    given[rare] = 2
    scores[rare, 2] = -20.0
    reading = read_classes(scores, given)
    weights = keep_for_refit(reading, given, regression=False)
    assert set(np.unique(weights)) <= {0.0, 1.0}
    for label in range(3):
        assert weights[given == label].mean() >= 0.5
    assert np.all(reading.p_mislabeled[weights == 0] > 0.5)


@pytest.mark.parametrize("k", [2, 3, 5])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_scores_that_say_nothing_accuse_nobody(k: int, spread: float) -> None:
    """Left-out scores of a model without features: class shares, less the example's own."""
    random = np.random.default_rng(k)
    given = random.integers(0, k, 1500)
    counts = np.bincount(given, minlength=k).astype(float)
    shares = np.tile(counts, (1500, 1))
    shares[np.arange(1500), given] -= 1.0
    scores = np.log(shares) + spread * random.standard_normal((1500, k))
    reading = read_classes(scores, given)
    assert np.count_nonzero(reading.p_mislabeled > 0.5) == 0
    assert reading.estimated_errors < 5


def test_a_few_sure_errors_are_found_in_clean_labels() -> None:
    """A noise matrix that does not earn its keep leaves a channel that still sees what is blatant."""
    scores, true, given = _world(5000, np.eye(4), temperature=1.0, sharpness=8.0)
    sure = np.flatnonzero(np.sort(scores, axis=1)[:, -1] - np.sort(scores, axis=1)[:, -2] > 12)[:3]
    given[sure] = (true[sure] + 1) % 4
    reading = read_classes(scores, given)
    assert set(np.flatnonzero(reading.p_mislabeled > 0.5)) >= set(sure)
    assert np.count_nonzero(reading.p_mislabeled > 0.5) <= 10


def test_the_only_example_of_a_label_is_not_accused() -> None:
    scores, _, given = _world(1000, np.eye(3) * 0.9 + 0.1 / 3, temperature=1.0, sharpness=6.0)
    keep = np.append(np.flatnonzero(given != 2), np.flatnonzero(given == 2)[0])
    scores, given = scores[keep], given[keep]
    scores[-1, 2] = -500.0
    reading = read_classes(scores, given)
    assert reading.p_mislabeled[-1] < 0.5
    assert reading.flows is not None
    assert reading.flows.sum() == pytest.approx(reading.estimated_errors)
    assert reading.doubt[-1] < np.median(reading.doubt[reading.p_mislabeled > 0.5])


@pytest.mark.parametrize(
    ("n", "k", "rows"), [(1_437, 10, 1_437), (10**7, 2, 125_000), (10**7, 10, 25_000), (10**7, 100, 20_000),
                         (10**7, 1_000, 5_000), (3_000, 1_000, 3_000)]
)  # fmt: skip
def test_rows_that_a_matrix_is_fitted_to(n: int, k: int, rows: int) -> None:
    assert fit_rows(n, k) == len(fit_sample(n, k)) == rows
    assert np.all(np.diff(fit_sample(n, k)) > 0)


def test_a_sample_reads_as_the_whole_does(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    truth = random.integers(0, 3, 20_000)
    scores = 6.0 * np.eye(3)[truth] + random.standard_normal((20_000, 3))
    given = np.where(random.random(20_000) < 0.05, (truth + 1) % 3, truth)
    whole = read_classes(scores, given)
    monkeypatch.setattr("influence_batch.detection.suspects._FIT_ROWS", 4_000)
    monkeypatch.setattr("influence_batch.detection.suspects._FIT_SCORES", 1)
    sample = read_classes(scores, given)
    assert sample.estimated_errors == pytest.approx(whole.estimated_errors, rel=0.05)
    assert np.mean((sample.p_mislabeled > 0.5) == (whole.p_mislabeled > 0.5)) > 0.999
