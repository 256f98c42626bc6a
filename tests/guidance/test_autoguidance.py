"""Autoguidance of networks that are known: Gaussians, whose guided flow has a closed form."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import gaussian

from denoising import Denoiser
from guidance.autoguidance import Autoguidance
from guidance.base import guide
from numerics.arrays import in_float64, sample_keys
from numerics.clipping import Clipping
from sampling import run, sample
from sde_lib import VESDE, VPSDE
from solvers.ddim import DDIM
from solvers.heun import Heun
from solvers.unipc import UniPC
from time_grids import Schedule

KEY = jax.random.key(0)
VP, VE = VPSDE(), VESDE(sigma_max=20.0)
GOOD = gaussian([0.3, -0.5], [[0.5, 0.1], [0.1, 0.3]])
BAD = gaussian([0.0, 0.2], [[1.2, -0.2], [-0.2, 0.9]])


def of_both(sde, **fields):
    return guide(GOOD.denoiser(sde), Autoguidance(bad=BAD.denoiser(sde), **fields))


@pytest.mark.slow
@pytest.mark.parametrize(("sde", "scale"), [(VP, 0.0), (VP, 1.0), (VE, 2.5)])
def test_the_score_is_the_linear_combination(x64, sde, scale):
    """At times within the interval; elsewhere the score is the good network's."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))
    t = np.array([0.1, 0.3, 0.6, 0.9])
    good, bad = (
        np.concatenate(
            [truth.marginal(sde, time).score(row[None]) for time, row in zip(t, x, strict=True)]
        )
        for truth in (GOOD, BAD)
    )
    combined = bad + scale * (good - bad)
    inside = (t >= 0.2) & (t <= 0.6)
    for interval, expected in (
        ((0.0, 1.0), combined),
        ((0.2, 0.6), np.where(inside[:, None], combined, good)),
    ):
        denoiser = of_both(sde, scale=scale, interval=interval)
        np.testing.assert_allclose(denoiser.score(x, jnp.asarray(t)), expected, rtol=1e-9)
        for k in (0, 2):  # one time for the batch is a branch of the program
            np.testing.assert_allclose(
                jax.jit(denoiser.score)(x, jnp.asarray(t[k]))[k], expected[k], rtol=1e-9
            )
        assert denoiser.evaluations == 2


@pytest.mark.slow
@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.35, 0.6)], ids=["always", "interval"])
def test_samples_follow_the_flow_of_both(x64, interval):
    """For N(0, a) and N(0, b), in y = x / alpha and s = sigma / alpha, with weight w,

    dy/ds = s y (w / (a + s^2) + (1 - w) / (b + s^2)).
    """
    a, b, scale = 0.3, 1.5, 2.5
    times = Schedule(grid="log_snr", steps=400, t_min=1e-3).of(VP)
    alpha, sigma = in_float64(VP.alpha, times), in_float64(VP.sigma, times)

    def log_shrinkage(first, last, weight):
        """log y(last) / y(first), for noise levels s."""
        ratios = [np.log((v + last**2) / (v + first**2)) / 2 for v in (a, b)]
        return weight * ratios[0] + (1 - weight) * ratios[1]

    edges = np.divide(*(in_float64(f, np.array(interval)) for f in (VP.sigma, VP.alpha)))
    start, end = (sigma / alpha)[[0, -1]]
    inner, outer = np.clip(edges, end, start)
    truth = np.exp(
        log_shrinkage(start, outer, 1)
        + log_shrinkage(outer, inner, scale)
        + log_shrinkage(inner, end, 1)
    )
    good, bad = (gaussian([0.0], [[variance]]).denoiser(VP) for variance in (a, b))
    denoiser = guide(good, Autoguidance(bad=bad, scale=scale, interval=interval))
    x = jnp.array([[0.7], [-1.1]])
    found = run(sample_keys(KEY, jnp.arange(2)), denoiser, x, UniPC().plan(VP, times)).x
    np.testing.assert_allclose(found / alpha[-1], truth * x / alpha[0], rtol=4e-3)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [DDIM(eta=1.0), Heun(), UniPC()], ids=lambda s: type(s).__name__)
def test_every_solver_samples_with_it(solver):
    schedule = Schedule(grid="log_snr", steps=5)
    plain, same, guided = (
        sample(KEY, denoiser, (4, 2), solver=solver, schedule=schedule).x
        for denoiser in (GOOD.denoiser(VP), of_both(VP, scale=1.0), of_both(VP, scale=2.0))
    )
    np.testing.assert_allclose(plain, same, atol=1e-4)
    assert np.abs(guided - plain).max() > 0.01


def test_the_bad_network_sees_the_classes_and_small_images_of_the_good_one():
    """And no classes where it knows none; clipping is after the extrapolation."""
    seen = []

    def network(x, condition, *labels, image):
        seen.append((labels, image))
        return 0.1 * x

    bad = Denoiser(sde=VP, network=network, parameterization="x0")
    good = dataclasses.replace(
        bad,
        network=lambda x, condition, labels, image: 0.9 * x,
        labels=jnp.array([2, 0]),
        image=jnp.ones((2, 1)),
        clipping=Clipping(clip="range"),
    )
    x = jnp.array([[0.5], [2.0]])
    for knows, labels in ((True, [[2, 0]]), (False, [])):
        guidance = Autoguidance(bad=bad, bad_knows_classes=knows, scale=3.0)
        x0 = guide(good, guidance).predict(x, 0.5).x0
        np.testing.assert_allclose(x0, [[1.0], [1.0]])  # 0.1 x + 3 * 0.8 x is 1.25 and 5
        found, image = seen.pop()
        assert [label.tolist() for label in found] == labels
        assert image is good.image


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": -1.0}, r"scale=-1\.0 must be at least 0"),
        ({"interval": (0.6, 0.2)}, "two increasing times"),
    ],
)
def test_numbers_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        of_both(VP, **fields)
