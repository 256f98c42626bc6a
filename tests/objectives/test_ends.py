"""The other end of a path: noise as before, or x1 with the noise of a Brownian bridge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from denoising import Denoiser
from losses import Noise, ScoreMatching
from objectives.ends import draw_noise
from objectives.weights import WEIGHTS
from sde_lib import VPSDE, LinearPathSDE
from training.objective import FIRST

KEY = jax.random.key(1)


def denoiser(sde, **fields):
    return Denoiser(sde=sde, network=lambda x, t: 0.3 * x, conditioning="t", **fields)


def test_without_ends_the_noise_is_that_of_before():
    x0 = jnp.zeros((4, 3))
    found = draw_noise(KEY, denoiser(VPSDE()), x0, jnp.full(4, 0.5))
    np.testing.assert_array_equal(found, jax.random.normal(KEY, (4, 3)))


def test_a_bridge_has_both_ends_and_the_deviation_of_brownian_motion_between_them():
    x0, x1, t = jnp.full((20_000, 1), 2.0), jnp.full((20_000, 1), -1.0), 0.25
    for g in (0.0, 0.6):
        sde = LinearPathSDE(diffusion=g)
        times = jnp.full(len(x0), t)
        x = sde.perturb(x0, times, draw_noise(KEY, denoiser(sde, end=x1), x0, times))
        assert float(x.mean()) == pytest.approx(2 * (1 - t) - t, abs=0.01)
        assert float(x.std()) == pytest.approx(g * np.sqrt(t * (1 - t)), rel=0.02, abs=1e-5)


@pytest.mark.parametrize(
    ("parameterization", "target"),
    [
        ("velocity", lambda x0, x, eps, t: eps - x0),
        ("bridge", lambda x0, x, eps, t: (x - x0) / np.sqrt(t)),
    ],
)
@pytest.mark.slow
def test_the_weight_of_its_name_gives_the_error_of_the_network_weight_one(parameterization, target):
    with jax.enable_x64(True):
        sde = LinearPathSDE(diffusion=0.5, alpha_min=1e-9)
        rng = np.random.default_rng(0)
        x0, x1 = jnp.asarray(rng.normal(size=(2, 64, 3)))
        model = denoiser(sde, parameterization=parameterization, end=x1)
        loss = ScoreMatching(weight=WEIGHTS[parameterization]())
        t, eps = loss.draw(KEY, model, x0, FIRST)
        found = loss.evaluate(KEY, Noise(t, eps), model, x0, FIRST)
        at = np.asarray(t)[:, None]
        x = sde.perturb(x0, t, eps)
        error = 0.3 * x - target(x0, x, eps, at)
    np.testing.assert_allclose(found, np.mean(np.square(error), axis=1), rtol=1e-5)
