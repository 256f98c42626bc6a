"""Processes against the closed forms of their papers.

For VE, VP and sub-VP: Song et al. 2021, arXiv:2011.13456, Section 3.4.
"""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from numerics.arrays import sample_keys
from sde_lib import (
    EDMSDE,
    SDES,
    VESDE,
    VPSDE,
    CosineVPSDE,
    DiscreteVESDE,
    DiscreteVPSDE,
    LinearPathSDE,
    SubVPSDE,
    reverse_drift,
)

PROCESSES = [
    pytest.param(VPSDE(), id="vp"),
    pytest.param(SubVPSDE(), id="subvp"),
    pytest.param(VESDE(), id="ve"),
    pytest.param(VPSDE(beta_min=1.0, beta_max=5.0), id="vp_mild"),
    pytest.param(VESDE(sigma_min=0.1, sigma_max=3.0), id="ve_narrow"),
    pytest.param(DiscreteVESDE(num_timesteps=10), id="smld"),
    pytest.param(EDMSDE(), id="edm"),
    pytest.param(CosineVPSDE(), id="cosine"),
    pytest.param(CosineVPSDE(offset=0.1, alpha_min=0.2), id="cosine_mild"),
    pytest.param(LinearPathSDE(), id="linear"),
    pytest.param(LinearPathSDE(alpha_min=0.2), id="linear_mild"),
]
every_process = pytest.mark.parametrize("sde", PROCESSES)
TIMES = np.geomspace(1e-5, 1, 200)
# As close to 1 as to 0.
FLOAT32_TIMES = np.sort(np.append(TIMES, 1 - np.geomspace(1e-7, 0.5, 100))).astype(np.float32)


def closed_forms(sde, t):
    """alpha, sigma, f and g^2 as the papers print them, in float64."""
    if isinstance(sde, VESDE | DiscreteVESDE):
        ratio = sde.sigma_max / sde.sigma_min
        sigma = sde.sigma_min * ratio**t
        growth = 2 * math.log(ratio)  # d sigma^2 / dt = sigma^2 times this
        return {"alpha": 1 + 0 * t, "sigma": sigma, "f": 0 * t, "g2": sigma**2 * growth}
    if isinstance(sde, EDMSDE):  # g^2 = d sigma^2 / dt
        g2 = 2 * sde.sigma_max**2 * t
        return {"alpha": 1 + 0 * t, "sigma": sde.sigma_max * t, "f": 0 * t, "g2": g2}
    if isinstance(sde, LinearPathSDE):  # g^2 = 2 sigma (sigma' - f sigma)
        alpha = 1 - (1 - sde.alpha_min) * t
        return {"alpha": alpha, "sigma": t, "f": -(1 - sde.alpha_min) / alpha, "g2": 2 * t / alpha}
    if isinstance(sde, CosineVPSDE):
        # The papers' time runs to 1, where alpha is 0; ours to where it is alpha_min.
        s, start = sde.offset, math.cos(sde.offset / (1 + sde.offset) * math.pi / 2)
        end = math.acos(sde.alpha_min * start) / (math.pi / 2) * (1 + s) - s
        angle = (end * t + s) / (1 + s) * math.pi / 2
        alpha = np.cos(angle) / start
        beta = 2 * np.tan(angle) * end / (1 + s) * math.pi / 2
        return {"alpha": alpha, "sigma": np.sqrt(1 - alpha**2), "f": -beta / 2, "g2": beta}
    beta = sde.beta_min + t * (sde.beta_max - sde.beta_min)
    integral = t * sde.beta_min + t**2 / 2 * (sde.beta_max - sde.beta_min)
    forgotten = -np.expm1(-integral)  # 1 - exp(-int_0^t beta)
    common = {"alpha": np.exp(-integral / 2), "f": -beta / 2}
    if isinstance(sde, VPSDE):
        return common | {"sigma": np.sqrt(forgotten), "g2": beta}
    return common | {"sigma": forgotten, "g2": beta * -np.expm1(-2 * integral)}


def derived(sde, t):
    return {
        "alpha": sde.alpha(t),
        "sigma": sde.sigma(t),
        "f": sde.drift_coefficient(t),
        "g2": sde.squared_diffusion(t),
    }


@every_process
def test_coefficients_are_the_papers(x64, sde):
    ours = derived(sde, jnp.asarray(TIMES))
    for name, paper in closed_forms(sde, TIMES).items():
        np.testing.assert_allclose(ours[name], paper, rtol=1e-9, err_msg=name)


@every_process
def test_float32_is_accurate_down_to_the_smallest_time(sde):
    """It is accurate up to 1 too, with the process's parameters traced as in training."""
    times = FLOAT32_TIMES
    ours, log_snr = jax.jit(lambda sde, t: (derived(sde, t), sde.log_snr(t)))(sde, times)
    paper = closed_forms(sde, times.astype(np.float64))
    for name in paper:
        assert ours[name].dtype == jnp.float32
        np.testing.assert_allclose(ours[name], paper[name], rtol=1e-5, err_msg=name)
    # A relative error, or an absolute one where the log-SNR crosses 0: 1e-5 max(1, |log_snr|).
    expected = 2 * np.log(paper["alpha"] / paper["sigma"])
    np.testing.assert_allclose(log_snr, expected, rtol=5e-6, atol=5e-6)


@every_process
def test_scalar_and_batched_times_agree(sde):
    batched = derived(sde, jnp.asarray([1.0, 0.3]))
    for name, value in derived(sde, jnp.float32(0.3)).items():
        assert value.shape == ()
        np.testing.assert_allclose(value, batched[name][1], rtol=1e-6, err_msg=name)


@every_process
def test_perturb_scales_the_data_and_adds_noise_per_sample(sde):
    t = jnp.array([0.1, 0.9])
    x0, eps = jax.random.normal(jax.random.key(0), (2, 2, 3, 3, 1))
    paper = closed_forms(sde, np.asarray(t, np.float64))
    alpha, sigma = (paper[name].reshape(2, 1, 1, 1) for name in ("alpha", "sigma"))
    np.testing.assert_allclose(sde.perturb(x0, t, eps), alpha * x0 + sigma * eps, rtol=1e-4)


@every_process
def test_log_snr_decreases_and_its_inverse_inverts_it(x64, sde):
    t = jnp.asarray(TIMES)
    log_snr = sde.log_snr(t)
    assert np.all(np.diff(log_snr) < 0)
    np.testing.assert_allclose(sde.time_of_log_snr(log_snr), t, rtol=1e-9)
    beyond = jnp.array([log_snr.max() + 100, log_snr.min() - 100])
    np.testing.assert_allclose(sde.time_of_log_snr(beyond), [1e-12, 1], rtol=1e-9)


@every_process
def test_log_snr_is_inverted_in_float32_too(sde):
    log_snr = sde.log_snr(jnp.asarray(FLOAT32_TIMES))
    again = sde.log_snr(sde.time_of_log_snr(log_snr))
    # Where alpha falls steeply, neighboring float32 times are further apart than 2e-5.
    paper = closed_forms(sde, FLOAT32_TIMES.astype(np.float64))
    apart = paper["g2"] / paper["sigma"] ** 2 * np.spacing(FLOAT32_TIMES)
    assert np.all(np.abs(again - log_snr) < 2e-5 + apart)


@every_process
def test_transitions_compose_and_lead_from_marginal_to_marginal(x64, sde):
    s, u, t = jnp.float64(0.05), jnp.float64(0.4), jnp.float64(0.95)
    early_scale, early_std = sde.transition(s, u)
    late_scale, late_std = sde.transition(u, t)
    scale, std = sde.transition(s, t)
    np.testing.assert_allclose(scale, early_scale * late_scale, rtol=1e-12)
    np.testing.assert_allclose(std**2, late_scale**2 * early_std**2 + late_std**2, rtol=1e-10)
    np.testing.assert_allclose(sde.alpha(t), scale * sde.alpha(s), rtol=1e-12)
    variance = scale**2 * sde.sigma(s) ** 2 + std**2
    np.testing.assert_allclose(sde.sigma(t) ** 2, variance, rtol=1e-10)


@every_process
def test_short_transition_has_the_diffusion_of_the_sde(x64, sde):
    t, dt = jnp.asarray(TIMES[TIMES > 1e-2]), 1e-8
    scale, std = sde.transition(t - dt, t)
    paper = closed_forms(sde, np.asarray(t))
    np.testing.assert_allclose(std**2 / dt, paper["g2"], rtol=1e-4)
    np.testing.assert_allclose((scale - 1) / dt, paper["f"], rtol=1e-4, atol=1e-8)


@every_process
def test_simulated_sde_has_the_stated_marginals(x64, sde):
    """The exact moments of Euler-Maruyama's chain converge to alpha and sigma^2, at order 1."""
    end = 0.95  # later, the drift of cosine and linear is too steep for its steps
    times = np.linspace(1e-3, end, 8001)
    coefficients = {name: np.asarray(v) for name, v in derived(sde, jnp.asarray(times)).items()}
    last = closed_forms(sde, np.float64(end))

    def errors(stride):
        dt = np.diff(times[::stride])
        alpha, sigma, f, g2 = (
            coefficients[name][::stride] for name in ("alpha", "sigma", "f", "g2")
        )
        scale = 1 + f[:-1] * dt
        # The factor of each moment until the end: for the start, then for each step's noise.
        to_end = np.append(np.cumprod(scale[::-1])[::-1], 1.0)
        mean = to_end[0] * alpha[0]
        variance = to_end[0] ** 2 * sigma[0] ** 2 + np.sum(to_end[1:] ** 2 * g2[:-1] * dt)
        return np.array([mean / last["alpha"] - 1, variance / last["sigma"] ** 2 - 1])

    coarse, fine = errors(2), errors(1)
    assert np.all(np.abs(fine) < 0.01)
    large = np.abs(fine) > 1e-6  # VE's mean is exact; VP's variance at the end is nearly so
    np.testing.assert_allclose(coarse[large] / fine[large], 2, rtol=0.05)


@every_process
def test_prior_is_a_gaussian_of_the_stated_width(sde):
    x = sde.prior_sample(sample_keys(jax.random.key(1), jnp.arange(2000)), jnp.zeros((2000, 3, 2)))
    assert scipy.stats.kstest(np.ravel(x) / sde.prior_std, "norm").pvalue > 1e-3
    ours = sde.prior_log_prob(x[:10])
    expected = scipy.stats.norm.logpdf(np.asarray(x[:10], np.float64), 0, sde.prior_std)
    np.testing.assert_allclose(ours, expected.sum(axis=(1, 2)), rtol=1e-5)


@pytest.mark.parametrize("name", SDES)
def test_prior_of_the_published_processes_is_the_noise_at_the_end(name):
    sde = SDES[name]()
    rtol = 4e-3 if name == "learned" else 1e-4  # a log-SNR of -5 at t = 1, as published
    np.testing.assert_allclose(sde.prior_std, sde.sigma(jnp.float32(1)), rtol=rtol)


@pytest.mark.parametrize(("churn", "share"), [(0.0, 0.5), (1.0, 1.0), (2.0, 2.5)])
@every_process
def test_reverse_drift_is_anderson_or_probability_flow(sde, churn, share):
    x, score = jax.random.normal(jax.random.key(2), (2, 2, 3))
    t = jnp.array([0.2, 0.8])
    paper = closed_forms(sde, np.asarray(t, np.float64))
    expected = paper["f"][:, None] * x - share * paper["g2"][:, None] * score
    np.testing.assert_allclose(reverse_drift(sde, score, x, t, churn), expected, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        ("ve", {"sigma_min": 0.0}, r"sigma_min=0\.0 must be above 0"),
        ("ve", {"sigma_max": math.inf}, "sigma_max=inf must be above 0 and finite"),
        ("ve", {"sigma_min": 60.0}, r"sigma_min=60\.0 must be below sigma_max=50\.0"),
        ("vp", {"beta_min": -1.0}, r"beta_min=-1\.0 must be above 0"),
        ("vp", {"beta_max": math.nan}, "beta_max=nan must be above 0"),
        ("subvp", {"beta_min": 20.0}, r"beta_min=20\.0 must be below beta_max=20\.0"),
        ("smld", {"sigma_min": 60.0}, r"sigma_min=60\.0 must be below sigma_max=50\.0"),
        ("smld", {"num_timesteps": 1}, "num_timesteps=1 must be at least 2"),
        ("edm", {"sigma_max": 0.0}, r"sigma_max=0\.0 must be above 0"),
        ("cosine", {"offset": 0.0}, r"offset=0\.0 must be above 0"),
        ("cosine", {"alpha_min": 1.0}, r"alpha_min=1\.0 must lie in \(0, 1\)"),
        ("linear", {"alpha_min": 0.0}, r"alpha_min=0\.0 must lie in \(0, 1\)"),
        ("linear", {"alpha_min": math.nan}, r"alpha_min=nan must lie in \(0, 1\)"),
    ],
)
def test_invalid_parameter_is_named(name, fields, message):
    with pytest.raises(ValueError, match=message):
        SDES[name](**fields)


@every_process
def test_process_is_a_pytree_of_its_parameters(sde):
    leaves, structure = jax.tree.flatten(sde)
    assert leaves == [value for value in vars(sde).values() if isinstance(value, float)]
    assert jax.tree.unflatten(structure, leaves) == sde


def test_structures_of_the_processes_differ():
    """If the structures of two classes were equal, jit could run the wrong program."""
    structures = [jax.tree.structure(cls()) for cls in SDES.values()]
    for first, second in itertools.combinations(structures, 2):
        assert first != second


def test_one_compilation_serves_all_parameters():
    traces = []

    @jax.jit
    def sigma(sde, t):
        traces.append(sde)
        return sde.sigma(t)

    for beta_max in (10.0, 20.0):
        sde = VPSDE(beta_max=beta_max)
        sigma_paper = closed_forms(sde, np.float64(0.1))["sigma"]
        np.testing.assert_allclose(sigma(sde, jnp.float32(0.1)), sigma_paper, rtol=1e-5)
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("cls", "fields"),
    [
        (VPSDE, {"beta_min": [0.1, 0.2], "beta_max": [20.0, 10.0]}),
        (CosineVPSDE, {"offset": [0.008, 0.1], "alpha_min": [1e-3, 0.2]}),
    ],
)
def test_processes_can_be_stacked(cls, fields):
    stack = cls(**{name: jnp.array(values) for name, values in fields.items()})
    g2 = jax.jit(jax.vmap(lambda sde: sde.squared_diffusion(jnp.array(0.5))))(stack)
    for k in range(2):
        single = cls(**{name: values[k] for name, values in fields.items()})
        np.testing.assert_allclose(g2[k], closed_forms(single, np.float64(0.5))["g2"], rtol=1e-5)


@pytest.mark.parametrize("cls", [CosineVPSDE, LinearPathSDE])
def test_alpha_runs_from_one_to_alpha_min(cls):
    for alpha_min in (1e-6, 1e-3, 0.5):
        sde = cls(alpha_min=alpha_min)
        alpha = sde.alpha(jnp.array([0.0, 1.0]))
        np.testing.assert_allclose(alpha, [1, alpha_min], rtol=2e-6)
        f = sde.drift_coefficient(jnp.array([0.0, 1.0]))
        paper = closed_forms(sde, np.array([0.0, 1.0]))["f"]
        np.testing.assert_allclose(f, paper, rtol=1e-5)


def textbook_chain(schedule, n):
    """The products of 1 - beta_i of both papers, one factor at a time."""
    if schedule == "linear":  # Ho et al. 2020, Section 4, for n = 1000: 1e-4 to 0.02
        betas = [1e-4 * 1000 / n * (1 + i * 199 / (n - 1)) for i in range(n)]
    else:  # Nichol and Dhariwal 2021, Eq. 17
        f = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
        betas = [min(1 - f[i + 1] / f[i], 0.999) for i in range(n)]
    return np.cumprod(1 - np.array(betas))


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("num_timesteps", [100, 1000, 4000])
def test_discrete_chain_has_the_exact_table(x64, schedule, num_timesteps):
    sde = DiscreteVPSDE(schedule=schedule, num_timesteps=num_timesteps)
    t, dense = np.arange(num_timesteps) / (num_timesteps - 1), np.linspace(0, 1, 3 * num_timesteps)
    evaluate = jax.jit(lambda t, dense: (sde.alpha(t), sde.sigma(t), sde.log_snr(dense)))
    alpha, sigma, log_snr = evaluate(t, dense)
    alpha_bar = textbook_chain(schedule, num_timesteps)
    np.testing.assert_allclose(alpha**2, alpha_bar, rtol=1e-9)
    np.testing.assert_allclose(sigma**2, 1 - alpha_bar, rtol=1e-9)
    assert np.all(np.diff(log_snr) < 0)


def test_discrete_chain_is_accurate_in_float32_and_near_its_limit():
    t = np.arange(1000, dtype=np.float32) / np.float32(999)
    sigma, limit = jax.jit(lambda t: (DiscreteVPSDE().sigma(t), VPSDE().sigma(t)))(t)
    np.testing.assert_allclose(sigma**2, 1 - textbook_chain("linear", 1000), rtol=1e-5)
    np.testing.assert_allclose(sigma[100:], limit[100:], rtol=0.01)


def test_cosine_chain_tends_to_the_continuous_one(x64):
    """At a rate of 1 / num_timesteps; alpha_min is small, since the chain ends at alpha = 0."""
    chains = [DiscreteVPSDE(schedule="cosine", num_timesteps=n) for n in (200, 400)]
    limit, t = CosineVPSDE(alpha_min=1e-6), np.linspace(0, 1, 100)
    gaps = jax.jit(lambda t: [chain.alpha(t) - limit.alpha(t) for chain in chains])(t)
    coarse, fine = np.max(np.abs(gaps), axis=1)
    assert coarse < 1 / 200
    np.testing.assert_allclose(coarse / fine, 2, rtol=0.02)


@pytest.mark.parametrize("num_timesteps", [10, 1000])
def test_smld_has_the_exact_table(x64, num_timesteps):
    """Song and Ermon 2019, Section 4.3: a geometric sequence, which they count from its largest."""
    sde = DiscreteVESDE(sigma_max=1.0, num_timesteps=num_timesteps)
    table = [0.01 * 100 ** (i / (num_timesteps - 1)) for i in range(num_timesteps)]
    t = np.arange(num_timesteps) / (num_timesteps - 1)
    np.testing.assert_allclose(sde.sigma(jnp.asarray(t)), table, rtol=1e-12)
    np.testing.assert_allclose(sde.sigma(jnp.asarray(t, jnp.float32)), table, rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schedule": "sine"}, "schedule='sine' is unknown; choose one of: cosine, linear"),
        ({"num_timesteps": 1}, "num_timesteps=1 must be at least 2"),
        ({"num_timesteps": 20}, "num_timesteps=20 is too small .* choose more than 20"),
    ],
)
def test_impossible_chain_is_an_error(fields, message):
    with pytest.raises(ValueError, match=message):
        DiscreteVPSDE(**fields)


def test_discrete_chain_has_its_drift_at_both_ends(x64):
    sde = DiscreteVPSDE()
    for function in (sde.drift_coefficient, sde.squared_diffusion):
        values = jax.jit(function)(np.array([0.0, 1.0, 1e-9, 1 - 1e-9]))
        np.testing.assert_allclose(values[:2], values[2:], rtol=1e-4)
