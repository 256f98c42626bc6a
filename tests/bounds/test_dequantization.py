"""Variational dequantization: a density that is one, trained toward the density within the bins."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from analytic import gaussian
from jax.tree_util import Partial

from bounds.dequantization import DequantizationBound, DequantizedModel, Dequantizer
from models.dequantizer import CouplingDequantizer, apply_dequantizer, init_dequantizer
from sde_lib import VPSDE
from training.objective import Context

KEY = jax.random.key(0)
NETWORK = CouplingDequantizer(features=4, couplings=3)
flow = jax.jit(functools.partial(apply_dequantizer, NETWORK))
first_params = jax.jit(functools.partial(init_dequantizer, NETWORK), static_argnums=0)


def random_params(shape):
    """Parameters far from their start, where the flow is the identity."""
    leaves, structure = jax.tree.flatten(first_params(shape, KEY))
    rng = np.random.default_rng(0)
    moved = [leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    return jax.tree.unflatten(structure, moved)


@pytest.mark.slow
def test_log_density_is_the_log_determinant_of_the_flow():
    """In float64, against the determinant of the whole Jacobian by automatic differentiation."""
    shape = (2, 3, 2)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), random_params(shape))
        image = jax.random.normal(jax.random.key(1), (1, *shape), jnp.float64)
        noise = jax.random.uniform(jax.random.key(2), (1, *shape), jnp.float64)
        u, log_slope = flow(params, image, noise)
        jacobian = jax.jit(jax.jacfwd(lambda v: flow(params, image, v)[0]))(noise)
        _, expected = jnp.linalg.slogdet(jacobian.reshape(12, 12))
        assert float(log_slope[0]) == pytest.approx(float(expected), abs=1e-10)
        assert abs(float(expected)) > 0.5, "far from uniform noise"
        assert 0 < u.min() < u.max() < 1
        dequantizer = Dequantizer(network=Partial(flow, params), bin_width=0.25)
        x, log_q = dequantizer(image, noise)
        np.testing.assert_allclose(x, image + 0.25 * (u - 0.5), atol=1e-12)
        np.testing.assert_allclose(log_q, -log_slope, rtol=1e-12)


@pytest.mark.slow
def test_density_of_the_noise_integrates_to_one():
    """Of one pixel: the trapezoidal rule over u, which covers the bin from end to end."""
    params = random_params((1, 1, 1))
    v = (jnp.arange(20000, dtype=jnp.float32) + 0.5).reshape(-1, 1, 1, 1) / 20000
    u, log_slope = flow(params, jnp.full(v.shape, 0.3), v)
    u, density = np.asarray(u, np.float64).ravel(), np.exp(-np.asarray(log_slope, np.float64))
    assert (np.diff(u) > 0).all()
    assert u[0] < 1e-3
    assert u[-1] > 1 - 1e-3
    assert np.abs(density - 1).max() > 0.3, "far from uniform noise"
    assert np.trapezoid(density, u) == pytest.approx(1, abs=2e-3)


@pytest.mark.slow
def test_it_starts_at_uniform_noise():
    v = jax.random.uniform(KEY, (3, 2, 3, 2), minval=1e-6)
    u, log_slope = flow(first_params((2, 3, 2), KEY), jnp.ones(v.shape), v)
    np.testing.assert_allclose(u, v, atol=1e-4)
    np.testing.assert_allclose(log_slope, 0, atol=1e-3)


def test_fields_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"config\.dequantizer\.couplings=1; valid is .*2 or more"):
        CouplingDequantizer(couplings=1).validate()
    with pytest.raises(ValueError, match=r"t_min=1\.0 must lie in \(0, 1\)"):
        DequantizationBound(t_min=1.0)


# One image of two pixels with two gray levels, (0, 1), of which the data's Gaussian covers a tail.
SDE, BIN, CENTER = VPSDE(), 1.0, np.array([-0.5, 0.5])
DATA = gaussian(np.array([-0.9, 0.7]), 0.04 * np.array([[1.0, -0.6], [-0.6, 1.0]]))
IMAGE = jnp.asarray(CENTER, jnp.float32).reshape(1, 1, 2, 1)


def bits(x, log_q=0.0):
    """Bits/dim of x by the density of the data, with bins of width 1."""
    return -(DATA.log_prob(np.asarray(x).reshape(len(x), 2)) - np.asarray(log_q)) / math.log(4)


def true_bits():
    """From the mass of the bin, by the midpoint rule."""
    places = (np.arange(400) + 0.5) / 400 - 0.5
    grid = CENTER + np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)
    return -math.log(np.exp(DATA.log_prob(grid)).mean()) / math.log(4)


def model_of(params):
    dequantizer = Dequantizer(network=Partial(flow, params), bin_width=BIN)
    return DequantizedModel(dequantizer=dequantizer)


@pytest.mark.slow
def test_training_brings_bits_per_dim_from_those_of_uniform_noise_toward_the_truth():
    """The bound with the exact score is tight, so that its mean is the cross-entropy itself."""
    loss, copies = DequantizationBound(t_min=1e-4), jnp.tile(IMAGE, (256, 1, 1, 1))
    params = first_params((1, 2, 1), KEY)
    optimizer = optax.adam(2e-2)

    def mean_loss(params, key):
        values = loss(key, model_of(params), copies, Context(teacher=DATA.denoiser(SDE))).values
        return values.mean(), values

    @jax.jit
    def train(params):
        def advance(carry, key):
            params, state = carry
            gradient, values = jax.grad(mean_loss, has_aux=True)(params, key)
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), values.mean()

        keys = jax.random.split(jax.random.key(1), 150)
        (trained, _), _ = jax.lax.scan(advance, (params, optimizer.init(params)), keys)
        # The bound of the first parameters, over as many draws.
        first = jax.lax.map(lambda key: mean_loss(params, key)[1], keys)
        return trained, first

    trained, first = train(params)
    v = jax.random.uniform(jax.random.key(2), (20000, 1, 2, 1), minval=1e-6)
    images = jnp.tile(IMAGE, (len(v), 1, 1, 1))
    uniform, learned = (
        bits(*model_of(given).dequantizer(images, v)).mean() for given in (params, trained)
    )
    error = float(first.std()) / math.sqrt(first.size)
    assert float(first.mean()) == pytest.approx(uniform, abs=4 * error + 0.02)
    truth = true_bits()
    assert truth < learned < uniform
    assert learned - truth < 0.2 * (uniform - truth)
