"""Couplings: marginals, optimal transport against SciPy's, batches as functions of the step."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from data.couplings import (
    COUPLINGS,
    CoupledBatches,
    Coupling,
    Independent,
    MinibatchOT,
    NormalBatches,
    PairBatches,
    Paired,
    Reference,
    Simulated,
    seed_of_other,
)
from data.rows import RowBatches
from data.scaling import Standardizer

RNG = np.random.default_rng(0)
X = RNG.normal(size=(32, 3)).astype(np.float32)
Y = (2 * RNG.normal(size=(32, 3)) + 1).astype(np.float32)


def cost(x, y):
    return np.mean(np.sum((x - y).astype(np.float64) ** 2, axis=1))


def least_cost(x, y):
    table = np.sum((x[:, None] - y[None]).astype(np.float64) ** 2, axis=-1)
    return table[linear_sum_assignment(table)].mean()


def rows_of(array, coupling, *, seed=3, batch_size=8):
    batches = [
        RowBatches(
            rows=array,
            batch_size=batch_size,
            seed=each,
            scaler=Standardizer(mean=(0.0,), std=(1.0,)),
        )
        for each in (seed, seed_of_other(seed, paired=coupling.paired))
    ]
    return CoupledBatches(starts=batches[0], ends=batches[1], coupling=coupling, seed=seed)


def test_without_regularization_the_pairs_are_the_assignment_of_least_cost():
    ends = MinibatchOT(regularization=0.0).ends(X, Y, np.random.default_rng(1))
    assert cost(X, ends) == pytest.approx(least_cost(X, Y), rel=1e-6)
    np.testing.assert_array_equal(np.sort(ends, axis=0), np.sort(Y, axis=0))


@pytest.mark.slow
def test_pairs_drawn_from_a_regularized_plan_cost_little_more():
    pytest.importorskip("ott")
    rng = np.random.default_rng(1)
    costs = [
        np.mean([cost(X, MinibatchOT(regularization=r).ends(X, Y, rng)) for _ in range(20)])
        for r in (0.02, 0.2)
    ]
    assert least_cost(X, Y) * 0.98 < costs[0] < 1.1 * least_cost(X, Y)
    assert 1.05 * costs[0] < costs[1] < 0.8 * np.mean(np.sum((X[:, None] - Y) ** 2, axis=-1))


def test_with_brownian_bridges_the_plan_is_that_of_their_schroedinger_bridge():
    """Of two points at distance 1 it is known: the odds of staying are exp(1 / (2 g^2))."""
    pytest.importorskip("ott")
    x = np.repeat(np.float32([[0.0], [1.0]]), 200, axis=0)
    ends = MinibatchOT(diffusion=0.8).ends(x, x, np.random.default_rng(0))
    odds = np.exp(1 / (2 * 0.8**2))
    assert np.mean(ends == x) == pytest.approx(odds / (1 + odds), abs=0.06)


def test_optimal_transport_without_ott_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install ott-jax, or set .*=0$"):
        MinibatchOT()
    assert MinibatchOT(regularization=0.0).ends(X, Y, RNG).shape == X.shape  # the remedy


def test_the_reference_is_a_brownian_motion():
    x = np.zeros((4000, 1), np.float32)
    ends = Reference(diffusion=0.5).ends(x, x, np.random.default_rng(0))
    assert ends.std() == pytest.approx(0.5, rel=0.05)
    with pytest.raises(ValueError, match=r"give config\.sde\.name=linear"):
        Reference()


def test_rows_are_paired_by_their_index_or_not_at_all():
    rows = np.arange(40, dtype=np.float32)[:, None]
    x0, x1 = rows_of(rows, Paired()).at(2).swapaxes(0, 1)
    np.testing.assert_array_equal(x0, x1)
    x0, x1 = rows_of(rows, Independent()).at(2).swapaxes(0, 1)
    assert np.mean(x0 == x1) < 0.5


@pytest.mark.parametrize("coupling", [Independent(), MinibatchOT(regularization=0.0)])
def test_a_batch_depends_on_the_step_alone_and_its_parts_on_the_whole(coupling):
    whole = rows_of(X, coupling).at(5)
    assert whole.shape == (8, 2, 3)
    again = rows_of(X, coupling)
    parts = [again.at(5, slice(4)), again.at(5, slice(4, 8))]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole, again.at(6))


def test_normal_ends_are_new_at_every_step():
    batches = NormalBatches(shape=(2,), batch_size=500, seed=1)
    first = batches.at(0)
    assert abs(first.mean()) < 0.1
    assert first.std() == pytest.approx(1, abs=0.05)
    np.testing.assert_array_equal(batches.at(0, slice(3, 7)), first[3:7])
    assert not np.array_equal(batches.at(1), first)


def test_given_pairs_stay_pairs_in_every_order():
    pairs = np.stack([X, X + 1], axis=1)
    batches = PairBatches(pairs=pairs, batch_size=8, seed=0)
    x0, x1 = batches.at(3).swapaxes(0, 1)
    np.testing.assert_allclose(x1, x0 + 1)
    epoch = np.concatenate([batches.at(step)[:, 0] for step in range(4)])
    np.testing.assert_array_equal(np.sort(epoch, axis=0), np.sort(X, axis=0))


def test_simulated_pairs_need_a_run():
    with pytest.raises(ValueError, match=r"give config\.coupling\.run=RUN"):
        Simulated()
    assert all(issubclass(row, Coupling) for row in COUPLINGS.values())
