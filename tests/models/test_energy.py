"""Networks made gradients: symmetric Jacobians, line integrals that are differences of energies."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import UNET, configuration
from networks import quick_jit

from errors import ConfigError
from experiment import build
from models.energy import energies, energy_gradient

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(2, 6, 6))
X = RNG.normal(size=(3, 2, 3))
gradient = quick_jit(energy_gradient, static_argnums=0)


def network(x):
    """Of images (batch, 2, 3), with a full Jacobian that is not symmetric."""
    flat = x.reshape(len(x), 6)
    return (jnp.tanh(flat @ A) @ B).reshape(x.shape)


def jacobian(function, x):
    """Of the first image."""
    slopes = jax.jacfwd(lambda flat: function(flat.reshape(1, 2, 3)).ravel())
    return np.asarray(quick_jit(slopes)(x[0].ravel()))


def test_jacobian_of_the_gradient_is_symmetric_and_of_the_network_is_not(x64):
    plain, made = jacobian(network, X), jacobian(functools.partial(energy_gradient, network), X)
    assert np.max(np.abs(plain - plain.T)) > 0.1
    assert np.max(np.abs(made)) > 0.1
    np.testing.assert_allclose(made, made.T, atol=1e-12)


@pytest.mark.parametrize("make_output", [network, lambda x: jnp.sum(network(x), axis=(1, 2))])
def test_line_integrals_are_differences_of_energies(make_output, x64):
    """For a network that returns images, and for one that returns numbers."""
    points, weights = np.polynomial.legendre.leggauss(60)
    start, way = X[:1], X[1:2] - X[:1]
    along = gradient(make_output, start + (points[:, None, None] + 1) / 2 * way)
    integral = np.sum(weights / 2 * np.sum(along * way, axis=(1, 2)))
    low, high = quick_jit(energies, static_argnums=0)(make_output, X[:2])
    assert abs(high - low) > 0.1
    np.testing.assert_allclose(integral, high - low, rtol=1e-9)


def test_what_is_a_gradient_already_stays_what_it_is(x64):
    """A symmetric linear network; and no image's energy depends on another image."""

    def linear(x):
        return (x.reshape(len(x), 6) @ (A + A.T)).reshape(x.shape)

    np.testing.assert_allclose(gradient(linear, X), linear(X), atol=1e-12)
    alone = quick_jit(jax.vmap(lambda x: energy_gradient(network, x[None])[0]))(X)
    np.testing.assert_allclose(gradient(network, X), alone, atol=1e-12)


def test_output_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"needs a network whose output has the shape \(3, 2, 3\) or \(3,\), not"
    ):
        energy_gradient(lambda x: jnp.concatenate([x, x], axis=-1), jnp.asarray(X))


ENERGY = UNET | {"denoiser.energy": True, "model.dropout": 0.1, "loss.name": "sliced"}


@pytest.mark.slow
def test_unet_of_a_configuration_has_a_symmetric_score():
    """<u, J v> = <v, J u> by forward mode over the gradient, of one image at a time."""
    rng = np.random.default_rng(1)
    x, u, v = (jnp.asarray(rng.normal(size=(2, 8, 8, 1)), jnp.float32) for _ in range(3))
    experiment = build.build(configuration(ENERGY))
    leaves, tree = jax.tree.flatten(experiment.trainer.abstract_state().params)
    params = tree.unflatten([0.3 * rng.normal(size=leaf.shape).astype("f4") for leaf in leaves])

    @quick_jit
    @functools.partial(jax.vmap, in_axes=(None, 0, 0, 0))
    def product(params, x, u, v):
        score = functools.partial(experiment.model.denoiser(params).score, t=jnp.full(1, 0.5))
        return jnp.sum(u * jax.jvp(lambda x: score(x[None])[0], (x,), (v,))[1])

    first, second = product(params, x, u, v), product(params, x, v, u)
    assert np.all(np.abs(first) > 1e-2)
    np.testing.assert_allclose(first, second, rtol=1e-3)
    # Training differentiates that once more, with dropout; compiling it would take a minute.
    key = jax.eval_shape(lambda: jax.random.key(0))
    grads, _ = jax.eval_shape(jax.grad(experiment.trainer.objective, has_aux=True), params, key, x)
    assert jax.tree.structure(grads) == tree


def test_learned_variance_has_no_energy():
    fields = ENERGY | {"denoiser.parameterization": "eps_learned_variance"}
    with pytest.raises(
        ConfigError, match=r"config\.denoiser\.energy=True needs a network with one output, not"
    ):
        build.build(configuration(fields))
