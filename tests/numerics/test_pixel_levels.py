"""Gray levels given noisy pixels, against Bayes' rule written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from denoising import Denoiser
from numerics.pixel_levels import PixelLevels
from sde_lib import VPSDE

LEVELS = PixelLevels(gray_levels=5, low=-0.8, high=0.8)
VALUES = np.linspace(-0.8, 0.8, 5)


@pytest.fixture
def noisy(x64):
    """Log-odds (2, 3, 15) of three channels' levels, and noisy pixels (2, 3, 3)."""
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(2, 3, 15))), jnp.asarray(rng.normal(size=(2, 3, 3)))


def test_the_mean_is_that_of_bayes_rule(noisy):
    logits, x = noisy
    alpha, sigma = jnp.array([0.9, 0.5]).reshape(2, 1, 1), jnp.array([0.3, 0.8]).reshape(2, 1, 1)
    found = LEVELS.posterior_mean(logits, x, alpha, sigma)
    for index in np.ndindex(2, 3, 3):
        image, pixel, channel = index
        prior = np.exp(logits[image, pixel, 5 * channel : 5 * channel + 5])
        a, s = float(alpha[image, 0, 0]), float(sigma[image, 0, 0])
        weights = prior * np.exp(-((float(x[index]) - a * VALUES) ** 2) / (2 * s**2))
        mean = np.sum(weights * VALUES) / np.sum(weights)
        np.testing.assert_allclose(found[index], mean, rtol=1e-12)


def test_without_noise_a_pixel_is_its_nearest_level(noisy):
    logits, x = noisy
    one = jnp.ones((1, 1, 1))
    found = LEVELS.posterior_mean(logits, x, one, 1e-4 * one)
    nearest = VALUES[np.abs(np.asarray(x)[..., None] - VALUES).argmin(axis=-1)]
    np.testing.assert_allclose(found, nearest, rtol=1e-12)


def test_the_score_of_a_denoiser_is_the_gradient_of_the_density(x64):
    """The pixels of this density are independent, and the network knows their probabilities."""
    sde, t = VPSDE(), jnp.array([0.05, 0.4])
    logits = jnp.asarray(np.random.default_rng(1).normal(size=(3, 1, 5)))
    x = jnp.asarray(np.random.default_rng(2).normal(size=(2, 3, 1)))

    def log_density(x):
        alpha, sigma = (c.reshape(2, 1, 1) for c in (sde.alpha(t), sde.sigma(t)))
        squares = ((x - alpha * VALUES[None, None]) / sigma) ** 2
        prior = jax.nn.log_softmax(logits).reshape(1, 3, 5)
        return jnp.sum(jax.scipy.special.logsumexp(prior - squares / 2, axis=-1))

    denoiser = Denoiser(
        sde=sde,
        network=lambda x, cond: jnp.broadcast_to(logits.reshape(1, 3, 5), (len(x), 3, 5)),
        parameterization="levels",
        pixel_levels=LEVELS,
    )
    found, expected = jax.jit(lambda x: (denoiser.score(x, t), jax.grad(log_density)(x)))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("fields", [{"parameterization": "levels"}, {"pixel_levels": LEVELS}])
def test_levels_and_their_parameterization_need_each_other(fields):
    with pytest.raises(ValueError, match="give them for 'levels', and for it alone"):
        Denoiser(sde=VPSDE(), network=lambda x, cond: x, **fields)
