"""Coefficients meet images, and random numbers belong to samples rather than to batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numerics.arrays import (
    expand_like,
    fold_in_each,
    normal_like,
    require_batch,
    sample_indices,
    sample_keys,
    sum_per_sample,
)

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


WRONG_REQUESTS = [
    (0, (4, 2), None, TypeError, r"key=0 is not one random key; give jax\.random\.key"),
    (jax.random.split(KEY), (4, 2), None, TypeError, "not one random key"),
    *(
        (KEY, shape, None, ValueError, r"must be \(batch")
        for shape in (4, (), (0, 2), (-1,), (4.0,))
    ),
    (KEY, (4, 2), np.arange(3), ValueError, r"indices \(3,\) must be one per sample"),
]


@pytest.mark.parametrize(("key", "shape", "indices", "kind", "pattern"), WRONG_REQUESTS)
def test_wrong_request_for_samples_is_one_line(key, shape, indices, kind, pattern):
    with pytest.raises(kind, match=pattern):
        sample_indices(key, shape, indices)


def test_right_request_for_samples_gives_their_indices():
    for key in (KEY, jax.random.PRNGKey(0)):
        np.testing.assert_array_equal(sample_indices(key, (3, 2)), [0, 1, 2])
    np.testing.assert_array_equal(sample_indices(KEY, [2, 5], np.array([7, 9])), [7, 9])


WRONG_BATCHES = [
    (np.ones((4, 2), np.uint8), TypeError, "dtype uint8; give floats"),
    (np.ones((0, 2)), ValueError, "at least one"),
    (1.0, ValueError, "at least one"),
    ([[1.0, np.nan]], ValueError, "NaN or infinite"),
]


@pytest.mark.parametrize(("x", "kind", "pattern"), WRONG_BATCHES)
def test_wrong_batch_is_one_line(x, kind, pattern):
    with pytest.raises(kind, match=pattern):
        require_batch(x)


def test_right_batch_passes_traced_too():
    assert jax.jit(require_batch)(np.full((2, 3), np.nan)).shape == (2, 3)
    assert isinstance(require_batch([[1.0, 2.0]]), jax.Array)
