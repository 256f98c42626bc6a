"""Ancestral sampling of chains, whole and respaced, against the papers' algorithm written plainly.

Ho et al. 2020 (arXiv:2006.11239), Algorithm 2, with the variances of Nichol and Dhariwal 2021
(arXiv:2102.09672): between the bounds in logarithms by what the network predicts (Eq. 15), and on a
chain that keeps some timesteps only, with the betas that these have as a chain (Section 4).
"""

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from denoising import Denoiser
from numerics.arrays import fold_in_each, normal_like, pytree, sample_keys
from numerics.clipping import Clipping
from sampling import Step, sample
from sde_lib import VESDE, VPSDE, DiscreteVPSDE
from solvers.predictor_corrector import Ancestral, PredictorCorrector
from time_grids import Schedule

KEY = jax.random.key(0)
TIMESTEPS, SHAPE = 40, (3, 2)
# Timesteps kept by the rules of the paper's code: every fourth; and these numbers of 14 + 13 + 13,
# from the first of each section to its last.
GRIDS = {
    "40": range(40),
    "ddim10": range(0, 40, 4),
    "4,3,5": [0, 4, 9, 13, 14, 20, 26, 27, 30, 33, 36, 39],
    "7,2,1": [0, 2, 4, 6, 9, 11, 13, 14, 26, 27],
}


def _network(x, timestep, numbers=jnp):
    """Some smooth network: eps, and the numbers from -1 to 1 that stand for its variances."""
    angle = 3 * x + timestep.reshape(-1, 1) / TIMESTEPS
    return numbers.concatenate([0.8 * x + 0.3 * numbers.sin(angle), numbers.cos(2 * angle)], -1)


def betas(schedule):
    """1e-4 to 0.02 per step, for a thousand steps; or the cosine of the second paper's Eq. 17."""
    if schedule == "linear":
        return np.linspace(1e-4, 0.02, TIMESTEPS) * 1000 / TIMESTEPS
    alpha_bar = np.cos((np.arange(TIMESTEPS + 1) / TIMESTEPS + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)


@functools.cache
def draws():
    """The prior's noise, then that of each step."""

    @jax.jit
    def drawn(numbers):
        like, keys = jnp.zeros(SHAPE), sample_keys(KEY, jnp.arange(SHAPE[0]))
        steps = jax.vmap(lambda i: fold_in_each(fold_in_each(keys, 1 + i), 1))(numbers)
        noise = jax.vmap(lambda keys: normal_like(keys, like))(steps)
        return normal_like(fold_in_each(keys, 0), like), noise

    return jax.tree.map(np.asarray, drawn(np.arange(TIMESTEPS)))


@pytree()
@dataclass(frozen=True, kw_only=True)
class Push:
    """A guidance with a known gradient."""

    batched_fields = ()
    evaluations = 1

    def __call__(self, denoiser, x, t):
        timestep = t * (TIMESTEPS - 1)
        return denoiser.guided(denoiser.predict(x, t), push(x, timestep, jnp), x, t)


def push(x, timestep, numbers=np):
    return 2 * numbers.cos(x + timestep / TIMESTEPS)


def plainly_guided(kept, variance):
    """ADM's Algorithm 1: the mean, clipped, moves by the gradient times the step's variance.

    As its code does, at the first timestep the variance is 0 for "small", and the posterior
    variance of the second timestep stands for the smallest one otherwise.
    """
    alpha_bar = np.cumprod(1 - betas("linear"))[list(kept)]
    before = np.append(1.0, alpha_bar[:-1])
    beta = 1 - alpha_bar / before
    small = (1 - before) / (1 - alpha_bar) * beta
    clipped = np.append(small[1], small[1:])
    x, noise = draws()
    noise = iter(noise)
    for i in reversed(range(len(beta))):
        eps, fraction = np.split(_network(x, np.float64([kept[i]]), np), 2, axis=-1)
        v = (fraction + 1) / 2
        variances = {
            "small": small[i],
            "large": beta[i] if i else small[1],
            "learned": np.exp(v * np.log(beta[i]) + (1 - v) * np.log(clipped[i])),
        }
        x0 = np.clip((x - np.sqrt(1 - alpha_bar[i]) * eps) / np.sqrt(alpha_bar[i]), -1, 1)
        mean = np.sqrt(before[i]) * beta[i] * x0 + (1 - before[i]) * np.sqrt(1 - beta[i]) * x
        mean = mean / (1 - alpha_bar[i]) + variances[variance] * push(x, kept[i])
        if i == 0:
            return mean
        x = mean + np.sqrt(variances[variance]) * next(noise)


def plainly(schedule, kept, variance):
    alpha_bar = np.cumprod(1 - betas(schedule))[list(kept)]
    before = np.append(1.0, alpha_bar[:-1])
    beta = 1 - alpha_bar / before
    x, noise = draws()
    noise = iter(noise)
    for i in reversed(range(len(beta))):
        eps, fraction = np.split(_network(x, np.float64([kept[i]]), np), 2, axis=-1)
        x = (x - beta[i] / np.sqrt(1 - alpha_bar[i]) * eps) / np.sqrt(1 - beta[i])
        if i == 0:
            return x
        small = (1 - before[i]) / (1 - alpha_bar[i]) * beta[i]
        v = {"small": 0.0, "large": 1.0, "learned": (fraction + 1) / 2}[variance]
        x = x + np.sqrt(np.exp(v * np.log(beta[i]) + (1 - v) * np.log(small))) * next(noise)


def ours(schedule, grid, variance):
    denoiser = Denoiser(
        sde=DiscreteVPSDE(schedule=schedule, num_timesteps=TIMESTEPS),
        network=Partial(_network),
        parameterization="eps_learned_variance",
        conditioning="timestep",
        num_timesteps=TIMESTEPS,
    )
    solver = PredictorCorrector(predictor=Ancestral(variance=variance))
    schedule = Schedule(grid=grid, final_step="denoise")
    return sample(KEY, denoiser, SHAPE, solver=solver, schedule=schedule)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "variance"),
    [("linear", "small"), ("linear", "large"), ("linear", "learned"), ("cosine", "learned")],
)
def test_chain_is_the_papers(x64, schedule, variance):
    for grid, kept in GRIDS.items():
        samples = ours(schedule, grid, variance)
        np.testing.assert_allclose(samples.x, plainly(schedule, kept, variance), atol=1e-9)
        assert samples.nfe == len(kept)


@pytest.mark.slow
@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_guided_chain_is_adms_to_its_last_step(x64, variance):
    denoiser = Denoiser(
        sde=DiscreteVPSDE(num_timesteps=TIMESTEPS),
        network=Partial(_network),
        parameterization="eps_learned_variance",
        conditioning="timestep",
        num_timesteps=TIMESTEPS,
        clipping=Clipping(clip="range"),
        guidances=(Push(),),
    )
    solver = PredictorCorrector(predictor=Ancestral(variance=variance, guidance_form="mean"))
    for grid in ("40", "ddim10"):
        x = sample(KEY, denoiser, SHAPE, solver=solver, schedule=Schedule(grid=grid)).x
        np.testing.assert_allclose(x, plainly_guided(GRIDS[grid], variance), atol=1e-9)


@pytest.mark.slow
def test_learned_variance_spans_small_to_large(x64):
    """-1 is the small variance, 1 the large one, 0 their geometric mean; for chains or not."""
    sde, t, s = VESDE(), jnp.float64(0.4), jnp.float64(0.3)
    outputs = jnp.array([-1.0, 1.0, 0.0, 0.5])

    def network(x, t):
        return jnp.concatenate([jnp.sin(x), jnp.broadcast_to(outputs, x.shape)], axis=-1)

    denoiser = Denoiser(
        sde=sde, network=network, parameterization="eps_learned_variance", conditioning="t"
    )
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)
    keys = sample_keys(KEY, jnp.arange(3))

    @jax.jit
    def added(denoiser):
        names = ("small", "large", "learned")
        steps = [Ancestral(variance=v).step(keys, denoiser, Step(x, x), t, s) for v in names]
        return [step.x - step.mean for step in steps]

    small, large, learned = added(denoiser)
    assert np.all(np.abs(large) > np.abs(small))
    v = (outputs[None] + 1) / 2
    expected = np.sign(small) * np.abs(small) ** (1 - v) * np.abs(large) ** v
    np.testing.assert_allclose(learned, expected, rtol=1e-10)


def test_learned_variance_needs_a_network_that_predicts_one():
    denoiser = Denoiser(sde=VPSDE(), network=lambda x, t: x, conditioning="t")

    def step(x):
        keys = sample_keys(KEY, jnp.arange(SHAPE[0]))
        return Ancestral(variance="learned").step(
            keys, denoiser, Step(x, x), *jnp.array([0.4, 0.3])
        )

    with pytest.raises(ValueError, match=r"variance='learned' needs a network that predicts var"):
        jax.eval_shape(step, jnp.zeros(SHAPE))
    with pytest.raises(
        ValueError, match=r"variance='big' is unknown; choose one of: analytic, diagonal, large"
    ):
        Ancestral(variance="big")


@pytest.mark.slow
def test_the_large_variance_is_the_sigma_hat_of_ddim(x64):
    """DDIM's Section 5: the mean is that of eta = 1 (Eq. 12), and only the noise is larger."""
    sde, t, s = VPSDE(), jnp.asarray(0.6), jnp.asarray(0.2)
    denoiser = Denoiser(
        sde=sde, network=lambda x, t: jnp.sin(3 * x), parameterization="eps", conditioning="t"
    )
    x = jnp.linspace(-2.0, 2.0, 6).reshape(3, 2)
    after = Ancestral(variance="large").step(
        sample_keys(KEY, jnp.arange(3)), denoiser, Step(x, x), t, s
    )
    a_t, a_s = (float(sde.alpha(time)) ** 2 for time in (t, s))
    eps = np.sin(3 * np.asarray(x))
    x0 = (np.asarray(x) - np.sqrt(1 - a_t) * eps) / np.sqrt(a_t)
    one = np.sqrt((1 - a_s) / (1 - a_t)) * np.sqrt(1 - a_t / a_s)
    mean = np.sqrt(a_s) * x0 + np.sqrt(1 - a_s - one**2) * eps
    np.testing.assert_allclose(after.mean, mean, rtol=1e-10)
    noise = normal_like(sample_keys(KEY, jnp.arange(3)), x)
    np.testing.assert_allclose(after.x - after.mean, np.sqrt(1 - a_t / a_s) * noise, rtol=1e-10)
