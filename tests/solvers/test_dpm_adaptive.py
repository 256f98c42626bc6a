"""The adaptive DPM-Solver against its algorithm written plainly, an exact solution, and its laws.

The data are -1 and 1 with equal weights in every element, for which x0 is known in closed form;
with labels they are centerd at the label.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import gaussian
from jax.tree_util import Partial

from denoising import Denoiser
from errors import IntegrationError
from numerics.arrays import fold_in_each, sample_keys
from sde_lib import SDES, VESDE, VPSDE
from solvers.dpm_adaptive import DPMAdaptive, sample_adaptive

KEY = jax.random.key(0)
SHAPE = (4, 3)
FRAMES = 5  # also where none are looked at, so that the tests share a program
VP, VE = VPSDE(), VESDE(sigma_max=20.0)


def x0_of_two_points(sde, x, t):
    return jnp.tanh(x * (sde.alpha(t) / sde.sigma(t) ** 2)[:, None])


def two_points(sde):
    network = Partial(x0_of_two_points, sde)
    return Denoiser(sde=sde, network=network, parameterization="x0", conditioning="t")


def x0_with_labels(x, t, label):
    """Label 9 is NaN from t = 0.5 on."""
    center = label[:, None].astype(x.dtype)
    alpha, sigma = VP.alpha(t)[:, None], VP.sigma(t)[:, None]
    x0 = center + jnp.tanh((x - alpha * center) * alpha / sigma**2)
    return jnp.where((center == 9) & (t < 0.5)[:, None], jnp.nan, x0)


def with_labels(*labels):
    return Denoiser(
        sde=VP,
        network=Partial(x0_with_labels),
        labels=jnp.array(labels),
        parameterization="x0",
        conditioning="t",
    )


def prior(sde, index):
    keys = fold_in_each(sample_keys(KEY, jnp.array([index])), 0)
    return np.asarray(sde.prior_sample(keys, jnp.zeros((1, SHAPE[1]))))[0]


@jax.jit
def scales_at(sde, half_log_snr):
    t = sde.time_of_log_snr(2 * half_log_snr)
    return sde.alpha(t), sde.sigma(t)


def steps_of_the_paper(sde, x, options):
    """Appendix C for one sample; x at t_min, and the number of steps tried."""

    def predicted(x, alpha, sigma):
        x0 = np.tanh(alpha * x / sigma**2)
        return x0 if options.prediction == "x0" else (x - alpha * x0) / sigma

    def step(x, alpha, sigma, alpha_s, sigma_s, h):
        """The terms in x and in a constant prediction, phi_1 and phi_2 times its factor."""
        if options.prediction == "eps":
            psi = sigma_s * (math.exp(h) - 1 - h) / h
            return alpha_s / alpha * x, -sigma_s * (math.exp(h) - 1), -psi
        psi = alpha_s * (1 - (1 - math.exp(-h)) / h)
        return sigma_s / sigma * x, alpha_s * (1 - math.exp(-h)), psi

    half_log_snr, end = (float(sde.log_snr(jnp.float64(t))) / 2 for t in (1.0, options.t_min))
    h, previous, tried = options.first_step, x, 0
    while end - half_log_snr > 1e-10:
        tried += 1
        here = scales_at(sde, half_log_snr)
        first = predicted(x, *here)
        r1 = 1 / 2 if options.order == 2 else 1 / 3
        kept, constant_weight, _ = step(x, *here, *scales_at(sde, half_log_snr + r1 * h), r1 * h)
        second = predicted(kept + constant_weight * first, *scales_at(sde, half_log_snr + r1 * h))
        kept, constant_weight, psi = step(x, *here, *scales_at(sde, half_log_snr + h), h)
        order_1 = kept + constant_weight * first
        order_2 = order_1 + constant_weight / (2 * r1) * (second - first)
        low, high = order_1, order_2
        if options.order == 3:
            r2 = 2 / 3
            stage = step(x, *here, *scales_at(sde, half_log_snr + r2 * h), r2 * h)
            x_2 = stage[0] + stage[1] * first + r2 / r1 * stage[2] * (second - first)
            third = predicted(x_2, *scales_at(sde, half_log_snr + r2 * h))
            low, high = order_2, order_1 + psi / r2 * (third - first)
        allowed = np.maximum(options.atol, options.rtol * np.maximum(abs(low), abs(previous)))
        error = np.sqrt(np.mean(((high - low) / allowed) ** 2))
        if error <= 1:
            half_log_snr, x, previous = half_log_snr + h, high, low
        h = min(options.safety * h * max(error, 1e-99) ** (-1 / options.order), end - half_log_snr)
    return x, tried


# Order 3 takes order 2 as its lower one, so that x0 is tried with both.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("sde", "order", "prediction"), [(VP, 3, "eps"), (VE, 3, "x0"), (VE, 2, "eps")]
)
def test_steps_are_the_papers(x64, sde, order, prediction):
    denoiser = two_points(sde)
    for rtol, first_step in ((0.05, 0.05), (0.01, 3.0)):
        options = DPMAdaptive(
            order=order,
            prediction=prediction,
            rtol=rtol,
            first_step=first_step,
            max_growth=np.inf,
            final_step="none",
        )
        samples = sample_adaptive(KEY, denoiser, SHAPE, options=options, frames=FRAMES)
        ends, tried = zip(
            *(steps_of_the_paper(sde, prior(sde, index), options) for index in range(SHAPE[0])),
            strict=True,
        )
        np.testing.assert_allclose(samples.x, np.stack(ends), atol=1e-6)
        assert samples.nfe == order * max(tried)
        assert len(set(tried)) > 1  # each has steps of its own


def quantile(x, sde, t):
    """P(x_t <= x), which the probability flow keeps."""
    alpha, sigma = float(sde.alpha(jnp.float64(t))), float(sde.sigma(jnp.float64(t)))
    below = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))
    return (below((x - alpha) / sigma) + below((x + alpha) / sigma)) / 2


@pytest.mark.slow
def test_error_goes_with_the_tolerance(x64):
    start = quantile(np.stack([prior(VP, index) for index in range(SHAPE[0])]), VP, 1.0)
    errors, evaluations = [], []
    for tolerance in (1e-2, 1e-4, 1e-6):
        options = DPMAdaptive(
            rtol=tolerance, atol=tolerance, t_min=0.2, prediction="eps", final_step="none"
        )
        samples = sample_adaptive(KEY, two_points(VP), SHAPE, options=options, frames=FRAMES)
        errors.append(np.abs(quantile(np.asarray(samples.x), VP, 0.2) - start).max())
        evaluations.append(samples.nfe)
    assert errors[0] < 2e-2
    assert errors[1] < 2e-3
    assert errors[2] < 2e-4
    assert evaluations == sorted(evaluations)


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch(x64):
    options = DPMAdaptive(final_step="none")
    one, other = (
        sample_adaptive(
            KEY, two_points(VP), SHAPE, options=options, indices=jnp.array(indices), frames=FRAMES
        )
        for indices in ([0, 1, 2, 3], [7, 2, 100, 5])
    )
    np.testing.assert_array_equal(one.x[2], other.x[1])


@pytest.mark.slow
def test_frames_lie_on_the_path(x64):
    """What is interpolated inside a step keeps its quantile too."""
    options = DPMAdaptive(rtol=1e-3, atol=1e-3, final_step="none", t_min=0.2)
    samples = sample_adaptive(KEY, two_points(VP), SHAPE, options=options, frames=FRAMES)
    start = np.stack([prior(VP, index) for index in range(SHAPE[0])])
    np.testing.assert_allclose(samples.trajectory[0], start, rtol=1e-12)
    np.testing.assert_array_equal(samples.trajectory[-1], samples.x)
    for t, x in zip(samples.times, samples.trajectory, strict=True):
        np.testing.assert_allclose(quantile(x, VP, t), quantile(start, VP, 1.0), atol=5e-3)


@pytest.mark.slow
def test_nfe_is_the_number_of_network_calls():
    calls = []

    def network(x, t):
        jax.debug.callback(lambda t: calls.append(t), t[0])
        return x

    denoiser = Denoiser(sde=VP, network=network)
    samples = sample_adaptive(KEY, denoiser, (1, 3), options=DPMAdaptive())
    jax.effects_barrier()
    assert samples.nfe == len(calls)
    assert samples.nfe % 3 == 1  # the last one denoises


@pytest.mark.slow
def test_each_sample_has_its_own_label():
    mixed = sample_adaptive(KEY, with_labels(0, 3, 0, 3), SHAPE, options=DPMAdaptive()).x
    assert np.abs(np.abs(mixed - np.array([[0.0], [3.0], [0.0], [3.0]])) - 1).max() < 1e-2


@pytest.mark.slow
def test_failed_solves_are_reported_with_their_time():
    with pytest.raises(IntegrationError, match=r"1 of 4 samples became NaN .* at t=0\.[456]"):
        sample_adaptive(KEY, with_labels(0, 9, 0, 0), SHAPE, options=DPMAdaptive())
    few = DPMAdaptive(max_steps=3)
    with pytest.raises(IntegrationError, match=r"4 of 4 samples .* max_steps=3 .* t=0\.\d"):
        sample_adaptive(KEY, with_labels(0, 0, 0, 0), SHAPE, options=few)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"order": 1}, "order=1 is unknown; choose one of: 2, 3"),
        ({"prediction": "v"}, "prediction='v' is unknown; choose one of: eps, x0"),
        ({"final_step": "mean"}, "final_step='mean' is unknown"),
        ({"t_min": 0.0}, r"t_min=0\.0 must lie in \(0, 1\)"),
        ({"rtol": 0.0}, r"rtol=0\.0 must lie in \(0, 1\)"),
        ({"atol": -1.0}, r"atol=-1\.0 must lie in \(0, 1\)"),
        ({"safety": 1.0}, r"safety=1\.0 must lie in \(0, 1\)"),
        ({"first_step": math.inf}, "first_step=inf must be above 0 and finite"),
        ({"max_steps": 0}, "max_steps=0 must be at least 1"),
    ],
)
def test_bad_options_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        DPMAdaptive(**fields)


@pytest.mark.slow
@pytest.mark.parametrize("process", ["linear", "edm"])
def test_defaults_do_not_step_over_the_data(process):
    """Near t = 1 the error estimate is 0, and steps would grow without a limit."""
    sde, width = SDES[process](), 0.5
    data = gaussian(np.zeros(64), width**2 * np.eye(64))
    x = sample_adaptive(KEY, data.denoiser(sde), (64, 64), options=DPMAdaptive()).x
    assert 0.9 < np.std(x) / width < 1.1
