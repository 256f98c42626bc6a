"""Optimal variances of reverse steps, against the true reverse steps of Gaussian mixtures."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from analytic import Mixture, gaussian
from jax.tree_util import Partial

from denoising import Denoiser, Prediction
from objectives.uncertainty import MeasuredUncertainty
from objectives.variational import VARIANCES, bound_tables, step_divergence
from sde_lib import VESDE, VPSDE, LinearPathSDE, SubVPSDE
from solvers.moments import EpsMoments
from solvers.tables import coefficients_at

PROCESSES = {"vp": VPSDE(), "ve": VESDE(), "subvp": SubVPSDE(), "linear": LinearPathSDE()}
TIMES = np.array([1.0, 0.8, 0.5, 0.3, 0.1])
PLANE = Mixture(
    np.array([0.3, 0.7]),
    np.array([[-0.6, 0.2], [0.8, -0.3]]),
    np.array([[[0.04, 0.01], [0.01, 0.09]], [[0.25, -0.1], [-0.1, 0.06]]]),
)
LINE = Mixture(np.array([0.3, 0.7]), np.array([[-0.6], [0.8]]), np.array([[[0.04]], [[0.01]]]))
OPTIMAL = [name for name, row in VARIANCES.items() if row.needs]


def uncertainty(data, at, x):
    """Var(eps | x_t), from the posterior of x0."""
    alpha, sigma = at.alpha, at.sigma
    matrix = alpha * np.eye(data.dims)
    return (alpha / sigma) ** 2 * np.diag(data.posterior(matrix, x, sigma).covariance)


def given(u):
    return Prediction(jnp.zeros(()), jnp.zeros(()), uncertainty=jnp.asarray(u))


@pytest.mark.parametrize("variance", OPTIMAL)
@pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
def test_optimal_variance_is_that_of_the_true_reverse_step(x64, sde, variance):
    """From the joint law of x_s and x_t = a x_s + b eps, which knows nothing of predicted noise."""
    at, rng = coefficients_at(sde, TIMES), np.random.default_rng(0)
    steps, _ = bound_tables(sde, TIMES, "tweedie")
    for i in range(len(TIMES) - 1):
        t, s = at.at(i), at.at(i + 1)
        a = t.alpha / s.alpha
        b2 = t.sigma**2 - (a * s.sigma) ** 2
        small = b2 * s.sigma**2 / t.sigma**2
        for x in t.alpha * PLANE.sample(i, 3) + t.sigma * rng.normal(size=(3, 2)):
            reverse = PLANE.marginal(sde, s.t).posterior(a * np.eye(2), x, np.sqrt(b2))
            prediction = given(uncertainty(PLANE, t, x))
            row = VARIANCES[variance].log_ratio
            found = small * np.exp(row(prediction, steps.growth[i], steps.log_range[i]))
            np.testing.assert_allclose(found, np.diag(reverse.covariance), rtol=2e-5)


@pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
def test_bound_of_exact_scores_is_least_with_optimal_variances(x64, sde):
    """Each step's term in expectation, by quadrature over x_t."""
    at = coefficients_at(sde, TIMES)
    steps, _ = bound_tables(sde, TIMES, "tweedie")
    for i in range(len(TIMES) - 1):
        t = at.at(i)
        x = np.linspace(-5 * t.sigma - 2 * t.alpha, 5 * t.sigma + 2 * t.alpha, 400)[:, None]
        mass = np.exp(LINE.marginal(sde, t.t).log_prob(x))
        u = np.array([uncertainty(LINE, t, row)[0] for row in x])
        mean = np.sum(mass * u) / mass.sum()

        def term(variance, found, i=i, u=u, mass=mass):
            # The squared error of the exact prediction is u, in expectation given x_t.
            prediction = given(found)._replace(eps=jnp.sqrt(u), variance=jnp.full(u.shape, 0.5))
            grown, log_range = jnp.asarray(steps.growth[i]), jnp.asarray(steps.log_range[i])
            nats = step_divergence(prediction, jnp.zeros(len(u)), grown, log_range, variance)
            return float(np.sum(mass * np.asarray(nats)) / mass.sum())

        best = term("analytic", np.full(u.shape, mean))
        assert best == pytest.approx(0.5 * np.log1p(steps.growth[i] * mean), rel=1e-9)
        others = {name: term(name, u) for name, row in VARIANCES.items() if not row.needs}
        assert best <= min(others.values()) + 1e-12, others
        assert term("analytic", u) <= best + 1e-12, "given x_t it is better still"


def moments_of_gaussian(sde, width):
    at = coefficients_at(sde, TIMES)
    gamma = at.sigma**2 / (at.alpha**2 * width + at.sigma**2)
    return EpsMoments(times=TIMES, half_log_snr=at.half_log_snr, values=gamma, errors=0 * TIMES)


def test_moments_give_the_uncertainty_of_each_prediction(x64):
    """On Gaussian data it is alpha^2 w / (alpha^2 w + sigma^2), or what bounded data allow."""
    sde, width = VPSDE(), 0.3
    moments = moments_of_gaussian(sde, width)
    at = coefficients_at(sde, TIMES)
    exact = at.alpha**2 * width / (at.alpha**2 * width + at.sigma**2)
    exact_denoiser = gaussian(np.zeros(3), width * np.eye(3)).denoiser(sde)
    x, t = jnp.ones((5, 3)), jnp.asarray(TIMES)
    for radius in (np.inf, 0.2):
        found = moments.uncertainty(sde, TIMES, radius)
        denoiser = dataclasses.replace(exact_denoiser, uncertainty=found)
        expected = np.minimum(exact, (radius * at.alpha / at.sigma) ** 2)
        prediction = denoiser.predict(x, t)
        np.testing.assert_allclose(prediction.uncertainty, expected[:, None], rtol=1e-9)
        np.testing.assert_array_equal(prediction.eps, exact_denoiser.predict(x, t).eps)
    assert exact_denoiser.predict(x, t).uncertainty is None
    with pytest.raises(
        ValueError, match=r"the moments end at t=0\.1, but they are needed at t=0\.05"
    ):
        moments.uncertainty(sde, np.array([1.0, 0.05]))


def test_variance_without_an_uncertainty_is_refused():
    denoiser = Denoiser(sde=VPSDE(), network=Partial(lambda x, t: x))
    prediction = denoiser.predict(jnp.zeros((1, 2)), 0.5)
    with pytest.raises(ValueError, match=r"variance='analytic' .* need a denoiser with an uncer"):
        VARIANCES["analytic"].log_ratio(prediction, 1.0, 1.0)


def test_uncertainty_is_interpolated_in_the_log_snr():
    found = MeasuredUncertainty(half_log_snr=jnp.array([-5.0, 5.0]), values=jnp.array([0.0, 1.0]))
    sde, t = VPSDE(), jnp.array([0.9, 0.4])
    u = found(sde, jnp.zeros((2, 3, 4)), t, jnp.zeros((2, 3, 4)))
    assert u.shape == (2, 1, 1)
    np.testing.assert_allclose(u[:, 0, 0], (sde.log_snr(t) / 2 + 5) / 10, rtol=1e-5)
