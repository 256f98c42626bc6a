"""Samplers, likelihoods and bounds inside jit, vmap and grad: the same numbers, NaN for errors."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import standardized_mixture
from jax.tree_util import Partial

from bounds.continuous import ContinuousBoundOptions, continuous_bound
from bounds.discrete import DiscreteBoundOptions, discrete_bound
from denoising import Denoiser
from likelihood import LikelihoodOptions, log_prob
from numerics.ode import ODEOptions
from numerics.pixel_levels import PixelLevels
from sampling import sample
from sde_lib import VPSDE
from solvers import ADAPTIVE, SOLVERS
from solvers.ddim import DDIM
from solvers.dpm_adaptive import DPMAdaptive, sample_adaptive
from solvers.ode import encode, sample_ode
from time_grids import Schedule

KEY = jax.random.key(0)
SDE = VPSDE()
PLANE = standardized_mixture(dims=2)
SHAPE = (4, 2)
SCHEDULE = Schedule(steps=8, final_step="none")
# Optimal variances need moments, which tests/solvers/test_analytic_dpm.py has.
FIXED = sorted(SOLVERS.keys() - {"analytic"})


def assert_same(inside, outside, atol=1e-4):
    """Compare all numbers of two results."""
    for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(outside), strict=True):
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(b, float), rtol=1e-4, atol=atol)


def draw_by(name, key, **options):
    """Draw by a row of SOLVERS, with a denoiser that suits it."""
    denoiser = PLANE.energy_denoiser(SDE)
    if name == "consistency":
        denoiser = dataclasses.replace(PLANE.denoiser(SDE), parameterization=name)
    return sample(key, denoiser, SHAPE, solver=SOLVERS[name](), schedule=SCHEDULE, **options)


def slope(function, at, along, step=1e-6):
    """The directional derivative by central differences."""
    return (function(at + step * along) - function(at - step * along)) / (2 * step)


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_every_solver_draws_the_same(name):
    draw = partial(draw_by, name, frames=3)
    assert_same(jax.jit(draw)(KEY), draw(KEY))


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXED)
def test_every_solver_has_gradients(name, x64):
    """In the ends of the paths; the samples of consistency models forget these."""

    def total(end):
        return jnp.sum(draw_by(name, KEY, initial=end).x ** 2)

    end, along = jax.random.normal(KEY, (2, *SHAPE))
    found = jnp.vdot(jax.grad(total)(end), along)
    np.testing.assert_allclose(found, slope(total, end, along), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ADAPTIVE))
def test_every_adaptive_sampler_draws_the_same(name):
    sampler, _ = ADAPTIVE[name]
    denoiser = PLANE.denoiser(SDE)

    def draw(key):
        return sampler(key, denoiser, SHAPE, frames=3)

    assert_same(jax.jit(draw)(KEY), draw(KEY), atol=1e-3)


@pytest.mark.slow
def test_likelihoods_and_bounds_are_the_same():
    denoiser, x = PLANE.denoiser(SDE), jnp.asarray(PLANE.sample(0, 4), jnp.float32)
    levels, times = PixelLevels(gray_levels=4), Schedule(steps=4).of(SDE)
    gray = jnp.asarray([[-1, 1], [1, 1 / 3], [-1 / 3, -1 / 3], [1, 1]], jnp.float32)

    def values(x, gray):
        bound = discrete_bound(
            KEY, denoiser, gray, times=times, pixel_levels=levels, options=DiscreteBoundOptions()
        )
        continuous = continuous_bound(KEY, denoiser, x, options=ContinuousBoundOptions())
        return log_prob(KEY, denoiser, x).nats, encode(denoiser, x), bound, continuous

    assert_same(jax.jit(values)(x, gray), values(x, gray), atol=1e-3)


@pytest.mark.slow
def test_keys_are_mapped():
    denoiser, keys = PLANE.denoiser(SDE), jax.random.split(KEY, 3)

    def draw(key):
        return sample(key, denoiser, SHAPE, solver=DDIM(eta=1.0), schedule=SCHEDULE).x

    assert_same(jax.vmap(draw)(keys), np.stack([draw(key) for key in keys]))


def scaled(scale):
    """A denoiser whose network is scaled."""
    exact = PLANE.denoiser(SDE)
    network = Partial(lambda scale, x, t: scale * exact.network(x, t), scale)
    return dataclasses.replace(exact, network=network)


@pytest.mark.slow
def test_networks_have_gradients(x64):
    def total(scale):
        drawn = sample(KEY, scaled(scale), SHAPE, solver=DDIM(), schedule=SCHEDULE)
        return jnp.sum(drawn.x**2 + drawn.x)

    scale = jnp.asarray(0.9)
    np.testing.assert_allclose(jax.grad(total)(scale), slope(total, scale, 1), rtol=1e-7)


@pytest.mark.slow
def test_adaptive_samplers_have_derivatives():
    """Those of the exact flow, though the step sizes depend on the network too."""

    def change(draw):
        return jax.jvp(lambda scale: draw(scaled(scale)).x, (0.9,), (1.0,))[1]

    fine, finer = DPMAdaptive(rtol=1e-3, atol=1e-4), ODEOptions(rtol=1e-6, atol=1e-6)
    found = change(lambda denoiser: sample_adaptive(KEY, denoiser, SHAPE, options=fine))
    exact = change(lambda denoiser: sample_ode(KEY, denoiser, SHAPE, ode=finer))
    np.testing.assert_allclose(found, exact, atol=0.02 * np.abs(exact).max())


@pytest.mark.slow
def test_log_densities_have_the_score_as_derivative(x64):
    denoiser, x = PLANE.denoiser(SDE), jnp.asarray(PLANE.sample(0, 4))
    options = LikelihoodOptions(trace="exact", t_min=1e-3)
    ode = ODEOptions(rtol=1e-9, atol=1e-9)

    def nats(x):
        return log_prob(KEY, denoiser, x, options=options, ode=ode).nats

    along = jax.random.normal(KEY, x.shape, x.dtype)
    _, found = jax.jvp(nats, (x,), (along,))
    score = PLANE.marginal(SDE, 1e-3).score(x)
    np.testing.assert_allclose(found, jnp.sum(score * along, axis=1), rtol=1e-3)


@pytest.mark.slow
def test_what_fails_is_nan():
    def network(x, t):
        return jnp.where((t < 0.5)[:, None] & (x[:, :1] > 0), jnp.nan, 0.0) * x

    denoiser = Denoiser(sde=SDE, network=network, parameterization="score", conditioning="t")
    few = ODEOptions(max_steps=2)
    x = jnp.asarray([[1.0, 0.5], [-1.0, 0.5]])

    def values(x):
        drawn = sample(KEY, denoiser, x.shape, solver=DDIM(), schedule=SCHEDULE, initial=x).x
        late = sample_ode(KEY, denoiser, x.shape, ode=few).x
        return drawn, log_prob(KEY, denoiser, x).nats, late

    drawn, nats, late = jax.jit(values)(x)
    np.testing.assert_array_equal(np.isnan(drawn), [[True] * 2, [False] * 2])
    np.testing.assert_array_equal(np.isnan(nats), [True, False])
    assert np.isnan(late).all()


def test_a_traced_process_is_one_line_whose_remedy_works():
    denoiser, x = PLANE.denoiser(SDE), jnp.zeros(SHAPE)

    def draw(denoiser):
        return sample(KEY, denoiser, SHAPE, solver=DDIM(), schedule=SCHEDULE).x

    calls = (
        draw,
        lambda denoiser: continuous_bound(KEY, denoiser, x, options=ContinuousBoundOptions()),
        lambda denoiser: sample_ode(KEY, denoiser, SHAPE, frames=2),
    )
    for call in calls:
        with pytest.raises(TypeError, match=r"dataclasses\.replace\(denoiser, sde=sde\)"):
            jax.jit(call)(denoiser)
    with pytest.raises(TypeError, match="JAX traces the process"):
        jax.jvp(draw, (denoiser,), (denoiser,))
    drawn = jax.jit(lambda denoiser: draw(dataclasses.replace(denoiser, sde=SDE)))(denoiser)
    assert_same(drawn, draw(denoiser))
