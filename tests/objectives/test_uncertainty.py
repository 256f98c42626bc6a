"""Optimal variances of reverse steps, against the true reverse steps of Gaussian mixtures."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from analytic import Mixture, gaussian
from jax.tree_util import Partial

from denoising import Denoiser, Prediction
from models.mlp import MLP
from objectives.uncertainty import (
    TARGETS,
    MeasuredUncertainty,
    TrainedHead,
    VarianceHead,
    VarianceHeadLoss,
)
from objectives.variational import VARIANCES, bound_tables, step_divergence
from sde_lib import VESDE, VPSDE, LinearPathSDE, SubVPSDE
from solvers.moments import EpsMoments
from solvers.tables import coefficients_at
from training.objective import Context

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
@pytest.mark.slow
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


@pytest.mark.slow
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


def test_uncertainty_gets_a_time_per_sample():
    """As networks do, though samplers give one time for all."""
    shapes = []

    def uncertainty(sde, x, t, eps):
        shapes.append(t.shape)
        return x

    denoiser = Denoiser(sde=VPSDE(), network=Partial(lambda x, t: x), uncertainty=uncertainty)
    for t in (0.5, jnp.asarray(0.5), jnp.full(3, 0.5)):
        denoiser.predict(jnp.zeros((3, 2)), t)
    assert shapes == [(3,)] * 3


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


def posterior(at, x, error=0.0):
    """Of PLANE, row by row: the best eps, off by `error`, and its uncertainty."""
    eps, u = [], []
    for i, row in enumerate(x):
        alpha, sigma = at.alpha[i], at.sigma[i]
        truth = PLANE.posterior(alpha * np.eye(2), row, sigma)
        eps.append((row - alpha * truth.mean) / sigma + error)
        u.append((alpha / sigma) ** 2 * np.diag(truth.covariance) + error**2)
    return np.array(eps), np.array(u)


def best_head(target, at, eps, u):
    """A head with the exact means of its targets."""
    mean = {"squared_noise": u + eps**2, "residual": u}[target]
    log_mean = np.log(mean / np.asarray(TARGETS[target].size(2 * at.half_log_snr))[:, None])
    network = Partial(lambda log_mean, x, t: log_mean, jnp.asarray(log_mean))
    return VarianceHead(network=network, target=target, conditioning="t")


@pytest.mark.parametrize("target", TARGETS)
def test_best_head_gives_the_uncertainty_of_each_coordinate(x64, target):
    """SN for the exact eps; NPR for one that is off, whose error counts as uncertainty."""
    sde, error = VPSDE(), 0.3 if target == "residual" else 0.0
    at = coefficients_at(sde, TIMES)
    x = PLANE.sample(0, len(TIMES)) * at.alpha[:, None] + at.sigma[:, None]
    eps, u = posterior(at, x, error)
    head = best_head(target, at, eps, u)
    given = jnp.asarray(x), jnp.asarray(TIMES), jnp.asarray(eps)
    np.testing.assert_allclose(head(sde, *given), u, rtol=1e-6)
    most = 0.01 * np.exp(2 * at.half_log_snr)[:, None]
    bounded = dataclasses.replace(head, radius=0.1)(sde, *given)
    np.testing.assert_allclose(bounded, np.minimum(u, most), rtol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.slow
def test_loss_is_least_for_the_best_head(x64, target):
    """Among heads whose means are larger or smaller, on the same draws."""
    sde, loss, count = VPSDE(), VarianceHeadLoss(target=target), 1000
    context = Context(teacher=PLANE.denoiser(sde))
    x0, key = jnp.asarray(PLANE.sample(1, count)), jax.random.key(0)
    empty = TrainedHead(head=VarianceHead(network=Partial(lambda x, t: x), target=target))
    drawn = loss.draw(key, empty, x0, context)
    assert 1e-5 <= drawn.t.min() < 1e-3
    assert drawn.t.max() > 0.9
    at = coefficients_at(sde, np.asarray(drawn.t))
    head = best_head(target, at, *posterior(at, np.asarray(sde.perturb(x0, *drawn))))
    best = head.network.args[0]

    @jax.jit
    def mean_loss(shift):
        network = Partial(lambda best, x, t: best, best + shift)
        trained = TrainedHead(head=dataclasses.replace(head, network=network))
        return loss.evaluate(key, drawn, trained, x0, context).mean()

    # The slope is the mean of (1 - target / mean) / 2, whose expectation is 0.
    slope = (mean_loss(0.001) - mean_loss(-0.001)) / 0.002
    assert abs(slope) < 4 * 0.5 * np.sqrt(2.5 / (2 * count))
    assert mean_loss(0.3) > mean_loss(0.0) < mean_loss(-0.3)


@pytest.mark.slow
def test_trained_head_comes_near_the_true_variances():
    """A small network after seconds of training; benchmarks/analytic.py trains longer."""
    sde, loss, steps = VPSDE(), VarianceHeadLoss(t_min=1e-2), 600
    network = MLP(features=32, depth=1)
    context = Context(teacher=PLANE.denoiser(sde))
    x0 = jnp.asarray(PLANE.sample(2, 20000), jnp.float32)
    init = jax.jit(functools.partial(network.init, train=False))
    params = init(jax.random.key(0), x0[:1], jnp.zeros(1))["params"]
    optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, steps))
    apply = functools.partial(network.apply, train=False)

    def head_of(params):
        return VarianceHead(network=Partial(apply, {"params": params}))

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            batch = x0[jax.random.randint(key, (256,), 0, len(x0))]

            def mean_loss(params):
                return loss(key, TrainedHead(head=head_of(params)), batch, context).values.mean()

            updates, state = optimizer.update(jax.grad(mean_loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(1), steps)
        return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

    predict = jax.jit(lambda params, *given: head_of(params)(sde, *given))
    params, at = train(params), coefficients_at(sde, TIMES)
    rng = np.random.default_rng(3)
    x = PLANE.sample(3, 250) * np.repeat(at.alpha, 50)[:, None]
    x += rng.normal(size=x.shape) * np.repeat(at.sigma, 50)[:, None]
    times = np.repeat(TIMES, 50)
    eps, truth = posterior(coefficients_at(sde, times), x)
    found = predict(params, *(np.float32(a) for a in (x, times, eps)))
    ratios = np.log(np.asarray(found) / truth).reshape(5, 100)
    assert np.abs(ratios.mean(axis=1)).max() < 0.1, ratios.mean(axis=1)
    assert np.sqrt(np.mean(ratios**2, axis=1)).max() < 0.35, np.sqrt(np.mean(ratios**2, axis=1))
