"""Mean matching: reverses of Gaussian chains are known, and the Schroedinger bridge is its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from denoising import Denoiser
from losses import LOSSES
from objectives.mean_matching import MeanMatching, chain_times, simulate_steps
from objectives.weights import WEIGHTS
from sde_lib import LinearPathSDE
from training.objective import FIRST

KEY, G, STD1 = jax.random.key(2), 0.8, 1.5
SDE = LinearPathSDE(diffusion=G, alpha_min=1e-6)
COUPLED = (np.sqrt(4 * STD1**2 + G**4) - G**2) / 2  # of N(0, 1) and N(0, STD1^2)


def predicts(of_x0):
    """Return the denoiser that predicts x0 = of_x0(t) x."""
    return Denoiser(
        sde=SDE,
        network=lambda x, t: of_x0(t)[:, None] * x,
        parameterization="x0",
        conditioning="t",
    )


def of_bridge(t, near, far):
    """E[x_near | x_t] / x_t of the Schroedinger bridge, for the variances of both ends."""
    middle = (1 - t) ** 2 * near + t**2 * far + t * (1 - t) * (2 * COUPLED + G**2)
    return ((1 - t) * near + t * COUPLED) / middle


def slopes(steps):
    """Regress the targets on the states of each step."""
    x, x0 = (np.asarray(found, np.float64)[..., 0] for found in (steps.x, steps.x0))
    return (x * x0).sum(axis=1) / (x**2).sum(axis=1)


def noise(rows, num_timesteps):
    start_key, key = jax.random.split(KEY)
    z = jax.random.normal(key, (rows, num_timesteps, 1))
    return jax.random.normal(start_key, (rows, 1)), z


def test_the_times_are_their_own_mirror_image_and_steps_are_longest_in_the_middle():
    for count in (2, 7, 30):
        times = chain_times(count)
        assert (times[0], times[-1], len(times)) == (0, 1, count + 1)
        np.testing.assert_allclose(times, 1 - times[::-1], atol=1e-15)
        assert np.argmax(np.diff(times)) in ((count - 1) // 2, count // 2)
    assert MeanMatching(num_timesteps=30).first_time == pytest.approx(2 / 30**2)


@pytest.mark.slow
def test_of_the_reference_process_the_reverse_is_exact():
    """Of data N(0, 1) under a Brownian motion, E[x0 | x_t] = x_t / (1 + g^2 t)."""
    steps = jax.jit(simulate_steps)(SDE, None, *noise(40_000, 8))
    np.testing.assert_allclose(steps.x.var(axis=(1, 2)), 1 + G**2 * steps.t, rtol=0.03)
    np.testing.assert_allclose(slopes(steps), 1 / (1 + G**2 * steps.t), atol=0.05)


@pytest.mark.slow
def test_the_schroedinger_bridge_is_a_fixed_point():
    """A teacher from x0 to x1 that is the bridge gives the bridge from x1 to x0 back."""
    bridge = predicts(lambda t: of_bridge(t, STD1**2, 1.0))
    found = []
    for teacher in (bridge, None):
        steps = jax.jit(simulate_steps)(SDE, teacher, *noise(40_000, 20))
        times = np.asarray(steps.t, np.float64)
        # The error of the drift (x0 - x_t) / t, over steps of length dt.
        errors = (slopes(steps) - of_bridge(times, 1.0, STD1**2)) / times
        found.append(np.sqrt(np.sum(np.diff(times, prepend=0) * errors**2)))
    assert found[0] < 0.03
    assert found[1] > 0.1, "the reference process leads elsewhere"


@pytest.mark.slow
@pytest.mark.parametrize("weight", ["bridge", "x0"])
def test_the_loss_is_that_of_uniform_times_and_least_at_the_reverse(weight):
    """Its excess is the integral of the weight times E |x0_hat - E[x0 | x_t]|^2 / s^2."""
    loss = MeanMatching(num_timesteps=60, weight=WEIGHTS[weight]())
    start, z = noise(20_000, 60)
    losses = []
    for scale in (0.7, 1.0, 1.3):
        model = predicts(lambda t, scale=scale: scale / (1 + G**2 * t))
        losses.append(float(loss.evaluate(KEY, z, model, start, FIRST).mean()))
    t = jnp.linspace(1e-4, 1, 20_000)
    rate = loss.weight(SDE, t) * jnp.exp(SDE.log_snr(t)) / (1 + G**2 * t)
    # From the first time on: near 0 the integral is one of 1 / t or more.
    expected = 0.3**2 * float(jnp.sum(jnp.where(t > loss.first_time / 2, rate, 0)) / len(t))
    assert losses[0] - losses[1] == pytest.approx(expected, rel=0.25)
    assert losses[2] - losses[1] == pytest.approx(expected, rel=0.25)


def test_noise_is_drawn_for_each_row_and_step():
    loss = LOSSES["mean_matching"](num_timesteps=5)
    z = loss.draw(KEY, predicts(lambda t: t), jnp.zeros((4, 3, 2)), FIRST)
    assert z.shape == (4, 5, 3, 2)
    assert loss.evaluate(
        KEY, z, predicts(lambda t: t[:, None]), jnp.zeros((4, 3, 2)), FIRST
    ).shape == (4,)
    with pytest.raises(ValueError, match=r"num_timesteps=1 must lie in \[2, 1000\]"):
        MeanMatching(num_timesteps=1)
