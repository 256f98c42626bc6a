"""Analytic-DPM against closed forms, definitions by quadrature, and all paths counted out.

On an isotropic Gaussian N(m, w I) the best prediction is eps = sigma (x - alpha m) / (alpha^2 w +
sigma^2), so Gamma = sigma^2 / (alpha^2 w + sigma^2), and every law of the chain is known.

One grid of times for all: coefficients are compiled anew for every length.
"""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from denoising import Denoiser
from numerics.arrays import expand_like, fold_in_each, normal_like, sample_keys
from sampling import Step, sample
from sde_lib import VESDE, VPSDE, CosineVPSDE, DiscreteVPSDE, LinearPathSDE, SubVPSDE
from solvers.analytic_dpm import AnalyticDPM, optimal_times
from solvers.ddim import DDIM
from solvers.moments import EpsMoments, estimate_moments, moments_of
from solvers.predictor_corrector import Ancestral
from solvers.tables import coefficients_at
from time_grids import Schedule

KEY = jax.random.key(0)
PROCESSES = {
    "vp": VPSDE(),
    "ve": VESDE(),
    "subvp": SubVPSDE(),
    "cosine": CosineVPSDE(),
    "linear": LinearPathSDE(),
    "ddpm": DiscreteVPSDE(num_timesteps=100),
}
every_process = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
every_eta = pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
TIMES = np.array([1.0, 0.97, 0.49, 0.48, 0.4, 0.3, 0.05, 0.02, 0.01])
CENTER, WIDTH = 0.7, 0.3  # mean and variance of the Gaussian data


def _gaussian_eps(sde, x, t):
    alpha, sigma = expand_like(sde.alpha(t), x), expand_like(sde.sigma(t), x)
    return sigma * (x - alpha * CENTER) / (alpha**2 * WIDTH + sigma**2)


def gaussian_denoiser(sde):
    return Denoiser(sde=sde, network=Partial(_gaussian_eps, sde), conditioning="t")


def isotropic(alpha, sigma):
    return sigma**2 / (alpha**2 * WIDTH + sigma**2)


def stretched(alpha, sigma):
    """Gamma of a Gaussian with variance 0.5 in half of its dimensions and 0.01 in the others."""
    return sum(0.5 * sigma**2 / (alpha**2 * width + sigma**2) for width in (0.5, 0.01))


def known(sde, gamma=isotropic, times=TIMES):
    """Moments known exactly."""
    at = coefficients_at(sde, times)
    values = np.full(len(times), gamma(at.alpha, at.sigma), np.float64)
    return EpsMoments(
        times=times, half_log_snr=at.half_log_snr, values=values, errors=np.zeros(len(times))
    )


def steps_of(solver, sde, times=TIMES):
    """(of x, of eps, noise) of each step."""
    steps = solver.plan(sde, times).steps
    return np.column_stack([steps.weights, steps.noise])


@every_eta
@every_process
def test_gaussian_data_keep_their_marginals_in_steps_of_any_size(sde, eta):
    """From any time to any: so in any number of steps."""
    solver, at = AnalyticDPM(eta=eta, moments=known(sde)), coefficients_at(sde, TIMES)
    mean, variance = at.alpha * CENTER, at.alpha**2 * WIDTH + at.sigma**2
    for step, (of_x, of_eps, noise) in enumerate(steps_of(solver, sde)):
        slope = at.sigma[step] / variance[step]
        # eps = slope (x - mean), and x follows N(mean, variance).
        np.testing.assert_allclose(of_x * mean[step], mean[step + 1], rtol=1e-9)
        spread = (of_x + of_eps * slope) ** 2 * variance[step] + noise**2
        np.testing.assert_allclose(spread, variance[step + 1], rtol=1e-9)


@every_eta
@pytest.mark.parametrize("name", ["vp", "ve", "subvp"])
def test_variance_is_the_mean_squared_error_of_the_step(name, eta):
    """By quadrature over eps, for x0 = 1 or -1, where the best prediction is far from linear."""
    sde = PROCESSES[name]
    eps = np.linspace(-10, 10, 20001)
    masses = np.exp(-(eps**2) / 2) / np.sum(np.exp(-(eps**2) / 2))

    def predicted(alpha, sigma):
        """The mean of eps given x, for x0 = 1; x0 = -1 is its mirror image."""
        x = alpha + sigma * eps
        return (x - alpha * np.tanh(alpha * x / sigma**2)) / sigma

    def gamma(alpha, sigma):
        return np.array([masses @ predicted(*c) ** 2 for c in zip(alpha, sigma, strict=True)])

    at = coefficients_at(sde, TIMES)
    steps = steps_of(AnalyticDPM(eta=eta, moments=known(sde, gamma)), sde)
    for step, (of_x, of_eps, noise) in enumerate(steps):
        (alpha_t, alpha_s), (sigma_t, sigma_s) = (c[step : step + 2] for c in at[1:3])
        least = eta**2 * (sigma_s**2 - (alpha_t / alpha_s * sigma_s**2 / sigma_t) ** 2)
        target = alpha_s + np.sqrt(sigma_s**2 - least) * eps  # the mean of x_s given x_t, x0
        mean = of_x * (alpha_t + sigma_t * eps) + of_eps * predicted(alpha_t, sigma_t)
        missed = masses @ (target - mean) ** 2
        rounding = 1e-13 * sigma_s**2
        np.testing.assert_allclose(noise**2, least + missed, rtol=1e-7, atol=rounding)


@functools.cache
def draws():
    """The prior's noise, then that of each step."""

    @jax.jit
    def drawn(numbers):
        keys = sample_keys(KEY, jnp.arange(4))
        return jax.vmap(lambda i: normal_like(fold_in_each(keys, i), jnp.zeros((4, 2))))(numbers)

    return np.asarray(drawn(np.arange(len(TIMES))))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "eta"), [("cosine", 1.0), ("ddpm", 1.0), ("ddpm", 0.4)])
def test_chain_is_the_papers(x64, name, eta):
    """Their Algorithm in their own letters: alpha_n of a step, alpha_bar, beta_bar, lambda_n."""
    sde = PROCESSES[name]
    moments = known(sde, stretched)
    alpha_bar = coefficients_at(sde, TIMES).alpha ** 2
    x, *noise = draws()
    for n in range(len(TIMES) - 1):
        ab, before = alpha_bar[n : n + 2]
        alpha_n, beta_bar = ab / before, 1 - ab
        score = -(x - np.sqrt(ab) * CENTER) / (ab * WIDTH + beta_bar)
        x0 = (x + beta_bar * score) / np.sqrt(ab)
        lambda2 = eta**2 * (1 - before) / beta_bar * (1 - alpha_n)
        kept = np.sqrt(1 - before - lambda2)
        mean = np.sqrt(before) * x0 + kept * (x - np.sqrt(ab) * x0) / np.sqrt(beta_bar)
        gap = np.sqrt(beta_bar / alpha_n) - kept
        sigma2 = lambda2 + gap**2 * (1 - moments.values[n])
        x = mean + np.sqrt(sigma2) * noise[n]
    schedule = Schedule(times=tuple(TIMES), final_step="none")
    solver = AnalyticDPM(eta=eta, moments=moments)
    ours = sample(KEY, gaussian_denoiser(sde), (4, 2), solver=solver, schedule=schedule)
    np.testing.assert_allclose(ours.x, x, atol=1e-9)
    assert ours.nfe == 8


@every_process
def test_certain_predictions_give_ancestral_sampling_and_ddim(sde):
    """Point-mass data: Gamma is 1, and no variance is missing."""
    moments = known(sde, lambda alpha, sigma: 1.0)
    for eta in (1.0, 0.4, 0.0):
        ours = steps_of(AnalyticDPM(eta=eta, moments=moments), sde)
        np.testing.assert_allclose(ours, steps_of(DDIM(eta=eta), sde), rtol=1e-8, atol=1e-12)


def test_bounds():
    """Gamma outside [0, 1] counts as its end; bounded data and the last step bound the noise."""
    sde = VPSDE()

    def noise(gamma, **fields):
        moments = known(sde, lambda alpha, sigma: gamma)
        return steps_of(AnalyticDPM(moments=moments, **fields), sde)[:, 2]

    np.testing.assert_array_equal(noise(1.2), noise(1.0))
    np.testing.assert_array_equal(noise(-0.05), noise(0.0))
    at = coefficients_at(sde, TIMES)
    scale = at.alpha[:-1] / at.alpha[1:]
    added = np.sqrt(at.sigma[:-1] ** 2 / scale**2 - at.sigma[1:] ** 2)
    np.testing.assert_allclose(noise(0.0), added, rtol=1e-9)  # the forward step's own, undone
    unknown = np.minimum(0.25 * (at.alpha / at.sigma) ** 2, 1)
    assert unknown[0] < 1 == unknown[-1]
    np.testing.assert_allclose(noise(0.0, clip_x0_range=0.5), noise(1 - unknown), rtol=1e-9)
    capped = np.append(noise(0.4)[:-1], 0.01)
    np.testing.assert_allclose(noise(0.4, clip_last_std=0.01), capped, rtol=1e-12)
    np.testing.assert_array_equal(noise(0.4, clip_last_std=9.0), noise(0.4))


def _uneven(sde, x, t, eps):
    """An uncertainty that differs between the coordinates."""
    return jnp.clip(1 - sde.alpha(t), 0.01, 1)[:, None] * jnp.asarray([[1.0, 0.25]], x.dtype)


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_diagonal_variance_is_that_of_each_coordinate(x64, eta):
    """Each coordinate is stepped as by moments with its own uncertainty."""
    sde = PROCESSES["vp"]
    denoiser = dataclasses.replace(gaussian_denoiser(sde), uncertainty=Partial(_uneven))
    schedule = Schedule(times=tuple(TIMES), final_step="none")
    given = {"schedule": schedule, "indices": jnp.arange(4)}
    fields = {"eta": eta, "clip_x0_range": 1.5, "clip_last_std": 0.02}
    solver = AnalyticDPM(variance="diagonal", **fields)
    ours = sample(KEY, denoiser, (4, 2), solver=solver, **given)
    for coordinate, share in enumerate([1.0, 0.25]):
        moments = known(sde, lambda alpha, sigma, s=share: 1 - s * np.clip(1 - alpha, 0.01, 1))
        solver = AnalyticDPM(moments=moments, **fields)
        alone = sample(KEY, gaussian_denoiser(sde), (4, 2), solver=solver, **given)
        np.testing.assert_allclose(ours.x[:, coordinate], alone.x[:, coordinate], rtol=1e-9)
    assert ours.nfe == alone.nfe


@pytest.mark.slow
def test_ancestral_sampling_with_the_same_variance_is_the_same(x64):
    sde = PROCESSES["vp"]
    denoiser = dataclasses.replace(gaussian_denoiser(sde), uncertainty=Partial(_uneven))
    x, t, s = jnp.ones((4, 2)), jnp.asarray(0.5), jnp.asarray(0.3)
    keys = sample_keys(KEY, jnp.arange(4))
    ancestral = Ancestral(variance="diagonal").step(keys, denoiser, Step(x, x), t, s)
    plan = AnalyticDPM(variance="diagonal").plan(sde, np.array([0.5, 0.3]))
    row = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), plan.steps)
    ours = plan.function.step(keys, denoiser, Step(x, x), row, lambda keys, state, t: state)
    np.testing.assert_allclose(ancestral.mean, ours.mean, rtol=1e-9)
    np.testing.assert_allclose(ancestral.x, ours.x, rtol=1e-9)


def images(count):
    data = np.random.default_rng(0).normal(size=(count, 2))
    return jnp.asarray(CENTER + np.sqrt(WIDTH) * data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp", "ve"])
def test_estimate_is_the_closed_form_to_its_standard_error(x64, name):
    sde = PROCESSES[name]
    truth = known(sde)
    moments = estimate_moments(KEY, gaussian_denoiser(sde), [images(4000)], TIMES)
    np.testing.assert_array_equal(moments.times, TIMES)
    np.testing.assert_array_equal(moments.half_log_snr, truth.half_log_snr)
    deviations = (moments.values - truth.values) / moments.errors
    assert np.abs(deviations).max() < 4, deviations
    # ||eps(x)||^2 / Gamma and ||eps||^2 are chi-squared of 2 with the correlation Gamma.
    errors = truth.values * np.sqrt((1 - truth.values**2) / 4000)
    np.testing.assert_allclose(moments.errors, errors, rtol=0.1)


@pytest.mark.slow
def test_estimate_does_not_depend_on_the_batches(x64):
    denoiser, x = gaussian_denoiser(VPSDE()), images(4000)
    whole = estimate_moments(KEY, denoiser, [x], TIMES)
    cut = estimate_moments(KEY, denoiser, [x[:2000], x[2000:]], TIMES)
    np.testing.assert_allclose(cut.values, whole.values, rtol=1e-12)
    np.testing.assert_allclose(cut.errors, whole.errors, rtol=1e-9)
    other = estimate_moments(jax.random.key(1), denoiser, [x], TIMES)
    assert not np.allclose(other.values, whole.values, rtol=1e-6)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (np.ones((10, 2)), r"moments need at least 3 images, not 2"),
        (np.full((10, 5), np.nan), r"values of the moments has NaN or infinite entries"),
    ],
)
def test_estimate_refuses(part, message):
    with pytest.raises(ValueError, match=message):
        moments_of(VPSDE(), TIMES, [part])


def test_interpolation_is_linear_in_the_log_snr():
    sde = VPSDE()
    moments, at = known(sde), coefficients_at(sde, TIMES)
    between = at._replace(t=0.9 * at.t + 0.1 * at.t[0], half_log_snr=0.9 * at.half_log_snr + 0.1)
    expected = np.interp(between.half_log_snr, moments.half_log_snr, moments.values)
    np.testing.assert_allclose(moments.at(sde, between), expected, rtol=1e-12)
    np.testing.assert_array_equal(moments.at(sde, at), moments.values)


def test_file_is_read_back_and_damage_is_reported(tmp_path):
    moments, path = known(VPSDE()), tmp_path / "moments" / "40.npz"
    moments.save(path)
    again = EpsMoments.load(path)
    for field in dataclasses.fields(moments):
        ours, read = getattr(moments, field.name), getattr(again, field.name)
        np.testing.assert_array_equal(ours, read)
        assert read.dtype == np.float64
    assert [file.name for file in path.parent.iterdir()] == ["40.npz"]

    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(moments.values.tobytes())] ^= 1
    np.savez(tmp_path / "foreign.npz", images=np.zeros(3))
    np.savez(tmp_path / "pickle.npz", format=np.array([{}]))
    foreign = [(tmp_path / name).read_bytes() for name in ("foreign.npz", "pickle.npz")]
    for content in (b"", b"no archive", whole[:-30], bytes(flipped), *foreign):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"40\.npz is damaged or not a file of moments"
        ) as error:
            EpsMoments.load(path)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError, match=r"no\.npz: there are no moments; run --mode"):
        EpsMoments.load(tmp_path / "no.npz")


@pytest.mark.parametrize("name", ["vp", "subvp", "ve"])
def test_optimal_times_are_the_best_of_all(name):
    """By their formula, with alpha_n = (alpha_t / alpha_s)^2 of a step; all paths are tried."""
    sde = PROCESSES[name]
    moments, at = known(sde, stretched), coefficients_at(sde, TIMES)

    def cost(path):
        total = 0.0
        for t, s in itertools.pairwise(path):
            ratio = (at.alpha[t] / at.alpha[s]) ** 2
            added = at.sigma[t] ** 2 - ratio * at.sigma[s] ** 2
            small = added * at.sigma[s] ** 2 / at.sigma[t] ** 2
            gap = at.sigma[t] / np.sqrt(ratio) - np.sqrt(at.sigma[s] ** 2 - small)
            total += np.log((small + gap**2 * (1 - moments.values[t])) / small)
        return total

    last = len(TIMES) - 1
    for steps in range(1, last + 1):
        inner = itertools.combinations(range(1, last), steps - 1)
        best = min(((0, *between, last) for between in inner), key=cost)
        np.testing.assert_array_equal(optimal_times(sde, moments, steps), TIMES[list(best)])


def test_solver_steps_along_the_optimal_times():
    sde = VPSDE()
    moments = known(sde, stretched)
    given = np.linspace(1, TIMES[-1], 5)
    best = optimal_times(sde, moments, 4)
    plan = AnalyticDPM(timestep_choice="optimal", moments=moments).plan(sde, given)
    np.testing.assert_array_equal(plan.times, best)
    along = AnalyticDPM(moments=moments).plan(sde, Schedule(times=tuple(best)).of(sde))
    np.testing.assert_array_equal(plan.steps.noise, along.steps.noise)
    with pytest.raises(ValueError, match=r"the moments end at t=0\.01, but .* --mode=moments with"):
        AnalyticDPM(timestep_choice="optimal", moments=moments).plan(
            sde, np.array([1.0, 0.5, 0.001])
        )


def test_gamma_above_one_makes_no_step_free():
    """Otherwise a step from t = 1 would cost nothing, and the path would take the longest one."""
    sde = VPSDE()
    exact = known(sde, stretched)
    values = np.where(exact.times == 1, 1.001, exact.values)
    measured = dataclasses.replace(exact, values=values)
    for steps in (3, 5):
        path = optimal_times(sde, measured, steps)
        np.testing.assert_array_equal(path, optimal_times(sde, exact, steps))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eta": 1.5}, r"eta=1\.5 must lie in \[0, 1\]"),
        (
            {"timestep_choice": "best"},
            r"timestep_choice='best' is unknown; choose one of: grid, optimal",
        ),
        ({"clip_last_std": 0.0}, r"clip_last_std=0.0 must be above 0"),
        ({"clip_x0_range": float("nan")}, r"clip_x0_range=nan must be above 0"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        AnalyticDPM(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"times": TIMES[::-1]}, r"times of the moments must decrease from 1"),
        ({"half_log_snr": TIMES}, r"half_log_snr of the moments must increase"),
        (
            {"values": np.ones(2)},
            r"values of the moments is float64\[2\], but all arrays must be float64 of one",
        ),
        ({"values": -np.ones(9)}, r"must not be negative"),
        ({"errors": np.full(9, np.inf)}, r"errors of the moments has NaN or infinite entries"),
    ],
)
def test_arrays_that_are_no_moments(fields, message):
    good = {"times": TIMES, "half_log_snr": -TIMES, "values": TIMES, "errors": TIMES}
    EpsMoments(**good)
    with pytest.raises(ValueError, match=message):
        EpsMoments(**good | fields)


def test_moments_that_do_not_fit():
    sde = VPSDE()
    with pytest.raises(
        ValueError, match=r"name='analytic' needs the second moments .* run --mode=moments first"
    ):
        AnalyticDPM().plan(sde, TIMES)
    moments = known(sde)
    solver = AnalyticDPM(moments=moments)
    with pytest.raises(ValueError, match=r"measured on another process"):
        solver.plan(SubVPSDE(), TIMES)
    beyond = np.where(TIMES == 0.01, 0.001, TIMES)
    solver.plan(sde, beyond)  # the network is not evaluated at the last time
    beyond = np.where(TIMES == 0.02, 0.005, beyond)
    with pytest.raises(ValueError, match=r"end at t=0\.01, but they are needed at t=0\.005"):
        solver.plan(sde, beyond)
    with pytest.raises(
        ValueError, match=r"steps=9 must lie between 1 and 8, because the moments have 9"
    ):
        optimal_times(sde, moments, 9)
