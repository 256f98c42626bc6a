"""Coefficients meet images, and random numbers belong to samples rather than to batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numerics.arrays import expand_like, fold_in_each, normal_like, sample_keys, sum_per_sample

KEY = jax.random.key(0)


@pytest.mark.parametrize("shape", [(), (3,)])
def test_coefficient_multiplies_each_sample_by_its_own_number(shape):
    coefficient = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    x = jnp.ones((3, 4, 5))
    rows = np.broadcast_to(coefficient, 3)
    np.testing.assert_array_equal((expand_like(coefficient, x) * x)[:, 2, 1], rows)


def test_sum_runs_over_all_axes_but_the_first():
    x = np.arange(24.0, dtype=np.float32).reshape(2, 3, 4)
    np.testing.assert_array_equal(sum_per_sample(jnp.asarray(x)), [x[0].sum(), x[1].sum()])


@pytest.mark.slow
def test_noise_of_a_sample_is_a_function_of_its_key_alone():
    indices = jnp.array([7, 3, 11])
    noise = normal_like(sample_keys(KEY, indices), jnp.zeros((3, 5)))
    alone = normal_like(sample_keys(KEY, indices[1:2]), jnp.zeros((1, 5)))
    np.testing.assert_array_equal(noise[1], alone[0])
    np.testing.assert_array_equal(noise[1], jax.random.normal(jax.random.fold_in(KEY, 3), (5,)))


def test_samples_and_steps_have_keys_of_their_own():
    keys = sample_keys(KEY, jnp.arange(50))
    steps = [fold_in_each(keys, step) for step in range(20)]
    bits = np.concatenate([jax.random.key_data(k) for k in (keys, *steps)])
    assert len(np.unique(bits, axis=0)) == 50 * 21
