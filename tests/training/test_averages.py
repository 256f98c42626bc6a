"""Averages of the parameters against their sums in closed form, in double precision."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.averages import HalfLifeAverage, MoreAverages, MovingAverage, PowerAverage
from training.post_hoc import exponent_of

VALUES = np.random.default_rng(0).normal(size=30)


def averaged(average, values):
    current = jnp.zeros(1)
    for step, value in enumerate(values):
        current = average.update(current, jnp.full(1, value), jnp.int32(step))
    return float(current[0])


def test_average_is_the_geometric_sum():
    values = np.random.default_rng(0).normal(size=20)
    weights = 0.1 * 0.9 ** np.arange(19, -1, -1)
    ours = averaged(MovingAverage(rate=0.9, warmup=False), values)
    np.testing.assert_allclose(ours, weights @ values, rtol=1e-5)


def test_average_warms_up():
    values, expected = np.random.default_rng(0).normal(size=20), 0.0
    for step, value in enumerate(values):
        rate = min(0.6, (1 + step) / (10 + step))
        expected = rate * expected + (1 - rate) * value
    np.testing.assert_allclose(averaged(MovingAverage(rate=0.6), values), expected, rtol=1e-5)
    assert (1 + 19) / (10 + 19) > 0.6 > 1 / 10  # both branches were met


def test_average_keeps_the_type_of_its_leaves():
    leaf = jnp.zeros(2, jnp.bfloat16)
    assert MovingAverage().update(leaf, leaf + 1, jnp.int32(0)).dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_invalid_rate_is_named(rate):
    with pytest.raises(ValueError, match=rf"rate={rate} must lie in \[0, 1\)"):
        MovingAverage(rate=rate)


def test_rate_without_warm_up_gives_the_geometric_sum_exactly(x64):
    weight = np.float64(1 - np.float32(0.9))  # of the newest value; the rate is a float32
    weights = weight * (1 - weight) ** np.arange(29, -1, -1)
    average = MovingAverage(rate=0.9, warmup=False)
    np.testing.assert_allclose(averaged(average, VALUES), weights @ VALUES, rtol=1e-13)


@pytest.mark.parametrize("length", [0.02, 0.05, 0.1, 0.28])
def test_power_average_has_the_weights_of_the_closed_form(x64, length):
    """Karras et al. 2024, Eq. 1: the integral of (g + 1) s^g / n^(g + 1) over each step."""
    power = exponent_of(length) + 1
    edges = (np.arange(31) / 30) ** power
    ours = averaged(PowerAverage(length=length), VALUES)
    np.testing.assert_allclose(ours, np.diff(edges) @ VALUES, rtol=1e-12)


def test_power_average_does_not_remember_where_it_started(x64):
    start = jnp.full(1, 1e6)
    assert PowerAverage(length=0.1).update(start, jnp.ones(1), jnp.int32(0)) == 1.0


def test_power_average_keeps_its_digits_after_a_million_steps():
    """In single precision, 1 - (1 - 1/n)^(g + 1) written so has an error of one percent."""
    n = 1_000_001
    moved = PowerAverage(length=0.1).update(jnp.zeros(1), jnp.ones(1), jnp.int32(n - 1))
    exact = -math.expm1((exponent_of(0.1) + 1) * math.log1p(-1 / n))
    np.testing.assert_allclose(moved[0], exact, rtol=1e-6)


@pytest.mark.parametrize(("ramp_up", "step"), [(0.05, 3), (0.05, 400), (0.05, 10**6), (0.0, 3)])
def test_half_life_is_that_of_edm(x64, ramp_up, step):
    """Half-life = min(500,000, images seen * 0.05); the old average keeps 2^(-batch/half-life)."""
    half_life = min(500e3, step * 256 * ramp_up) if ramp_up else 500e3
    average = HalfLifeAverage(half_life_images=500e3, ramp_up=ramp_up, batch_size=256)
    kept = average.update(jnp.ones(1), jnp.zeros(1), jnp.int32(step))[0]
    np.testing.assert_allclose(kept, 0.5 ** (256 / half_life), rtol=1e-12)


def test_half_life_average_starts_at_the_first_parameters_that_it_sees(x64):
    assert averaged(HalfLifeAverage(half_life_images=500e3), [7.0]) == 7.0


def test_half_life_forgets_half_after_that_many_images(x64):
    average = HalfLifeAverage(half_life_images=640, ramp_up=0.0, batch_size=64)
    assert averaged(average, [1.0] * 10) == pytest.approx(0.5, rel=1e-12)
    assert average.rate == pytest.approx(0.5**0.1)


@pytest.mark.parametrize(
    "average", [MovingAverage(), HalfLifeAverage(half_life_images=1e3), PowerAverage(length=0.1)]
)
def test_every_average_keeps_the_type_of_its_leaves(average):
    leaf = jnp.zeros(2, jnp.bfloat16)
    assert average.update(leaf, leaf + 1, jnp.int32(3)).dtype == jnp.bfloat16


def test_more_averages_are_none_by_default_and_have_memory_of_their_own():
    assert MoreAverages().init({"a": jnp.ones(2)}) == {}
    kept = MoreAverages(more_rates=(0.9, 0.99), snapshot_every=5)
    params = {"a": jnp.arange(3.0)}
    first = jax.jit(kept.init)(params)
    assert set(first) == {"rate_0.9", "rate_0.99", "length_0.05", "length_0.1"}
    pointers = {tree["a"].unsafe_buffer_pointer() for tree in [params, *first.values()]}
    assert len(pointers) == 5


def test_each_of_more_averages_follows_its_own_rule():
    kept = MoreAverages(more_rates=(0.9,), warmup=False, lengths=(0.1,), snapshot_every=5)
    rules = {
        "rate_0.9": MovingAverage(rate=0.9, warmup=False),
        "length_0.1": PowerAverage(length=0.1),
    }
    update = jax.jit(kept.update)
    current = kept.init(jnp.zeros(1))
    for step, value in enumerate(VALUES):
        current = update(current, jnp.full(1, np.float32(value)), jnp.int32(step))
    assert set(current) == set(rules)
    for name, rule in rules.items():
        np.testing.assert_allclose(current[name][0], averaged(rule, VALUES), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"more_rates": (0.9, 1.0)}, r"more_rates=1\.0 must lie in \[0, 1\)"),
        ({"more_rates": ("a",)}, r"more_rates=\('a',\) must be numbers"),
        ({"more_rates": (0.9, 0.9)}, r"more_rates=\(0\.9, 0\.9\) has a number twice"),
        ({"lengths": (0.3,)}, r"lengths=0\.3 must lie in \[0\.001, 0\.28\]"),
        (
            {"lengths": (), "snapshot_every": 3},
            r"snapshot_every=3 stores nothing with lengths=\(\)",
        ),
        ({"snapshot_every": -1}, "snapshot_every=-1 must be at least 0"),
    ],
)
def test_invalid_field_of_more_averages_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        MoreAverages(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"half_life_images": 0.0}, "half_life_images=0.0 must be above 0"),
        ({"half_life_images": 1.0, "ramp_up": -0.1}, "ramp_up=-0.1 must be at least 0"),
    ],
)
def test_invalid_half_life_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        HalfLifeAverage(**fields)
