"""EDM's sampler against its algorithm written plainly, an exact solution, and itself elsewhere.

The data are -1 and 1 with equal weights in every element, for which x0 is known in closed form.
"""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from configs import edm_cifar10, edm_ffhq_64, edm_imagenet_64
from denoising import Denoiser
from experiment.reader import Reader
from numerics.arrays import fold_in_each, in_float64, normal_like, sample_keys
from sampling import run, sample
from sde_lib import EDMSDE, SDES, VPSDE, SubVPSDE
from solvers.heun import SCALINGS, VARIABLES, Heun
from time_grids import Schedule

KEY = jax.random.key(0)
SHAPE = (5, 3)
NO_CHURN = {"s_churn": 0.0, "churn_min": 0.0, "churn_max": math.inf, "churn_noise": 1.0}
KEYS = sample_keys(KEY, jnp.arange(SHAPE[0]))
PROCESSES = {"vp": VPSDE(), "edm": EDMSDE()}
every_process = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
STAGES = [0.5, 2 / 3, 1.0]


def x0_of_two_points(sde, x, t):
    return jnp.tanh(x * (sde.alpha(t) / sde.sigma(t) ** 2)[:, None])


def two_points(sde):
    network = Partial(x0_of_two_points, sde)
    return Denoiser(sde=sde, network=network, parameterization="x0", conditioning="t")


def eps_at(y, s):
    """(y - x0) / s for the two points, in EDM's variables."""
    return (y - np.tanh(y / s**2)) / s


def ratio(sde, times):
    """s = sigma / alpha."""
    return np.exp(-in_float64(sde.log_snr, times) / 2)


def prior(sde):
    return np.asarray(sde.prior_sample(fold_in_each(KEYS, 0), jnp.zeros(SHAPE)))


def fresh_noise(number):
    """The noise that the loop adds after a stage, two of which are a step."""
    return np.asarray(normal_like(fold_in_each(KEYS, 1 + number), jnp.zeros(SHAPE)))


def first_noise():
    """The noise that the loop adds before the first evaluation."""
    return np.asarray(normal_like(fold_in_each(fold_in_each(KEYS, 1), 1), jnp.zeros(SHAPE)))


def algorithm_3(y, s, stage):
    for here, there in itertools.pairwise(s):
        slope = eps_at(y, here)
        middle = here + stage * (there - here)
        second = eps_at(y + stage * (there - here) * slope, middle)
        y = y + (there - here) * ((1 - 1 / (2 * stage)) * slope + 1 / (2 * stage) * second)
    return y


def algorithm_2(y, s, s_churn, churn_min, churn_max, churn_noise, everywhere=False):
    """With s_N = 0, where there is no second evaluation.

    Unless there is churn everywhere, there is none above s_0, nor at s_{N-1}.
    """
    count = len(s)
    for i, here in enumerate(s):
        gamma = min(s_churn / count, math.sqrt(2) - 1) if churn_min <= here <= churn_max else 0
        raised = (1 + gamma) * here
        if not everywhere:
            raised = min(raised, s[0]) if i < count - 1 else here
        if raised > here:
            noise = fresh_noise(2 * i - 1) if i else first_noise()
            y = y + churn_noise * math.sqrt(raised**2 - here**2) * noise
        there = s[i + 1] if i < count - 1 else 0.0
        slope = eps_at(y, raised)
        euler = y + (there - raised) * slope
        y = y + (there - raised) * (slope + eps_at(euler, there)) / 2 if there > 0 else euler
    return y


@pytest.mark.parametrize("stage", STAGES)
@every_process
@pytest.mark.slow
def test_the_family_is_algorithm_3(x64, sde, stage):
    schedule = Schedule(grid="log_snr", steps=12, t_min=0.05, final_step="none")
    x = sample(KEY, two_points(sde), SHAPE, solver=Heun(stage=stage), schedule=schedule).x
    times = schedule.of(sde)
    first, last = in_float64(sde.alpha, times[[0, -1]])
    expected = algorithm_3(prior(sde) / first, ratio(sde, times), stage)
    np.testing.assert_allclose(x, last * expected, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize(
    "fields",
    [
        {"s_churn": 0.0},
        {"s_churn": 3.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.007},
        # As much as there can be; not everywhere, the second level is raised to the first.
        {"s_churn": 40.0, "churn_noise": 1.003},
    ],
    ids=["none", "some", "most"],
)
@every_process
def test_with_the_final_step_denoise_it_is_algorithm_2(x64, sde, fields, everywhere):
    count = 18
    schedule = Schedule(grid="karras", steps=count - 1, t_min=2.5e-5, final_step="denoise")
    solver = Heun(churn_all_levels=everywhere, **fields)
    samples = sample(KEY, two_points(sde), SHAPE, solver=solver, schedule=schedule)
    times = schedule.of(sde)
    # Their eps is EDM's own, to x0 itself at s = 0, where alpha is 1.
    start = prior(sde) / in_float64(sde.alpha, 1.0)
    expected = algorithm_2(start, ratio(sde, times), **NO_CHURN | fields, everywhere=everywhere)
    np.testing.assert_allclose(samples.x, expected, atol=1e-8)
    assert samples.nfe == 2 * count - 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "churn"),
    [
        (edm_cifar10, {}),
        (edm_cifar10, {"s_churn": 30.0, "churn_noise": 1.007}),
        (edm_ffhq_64, {"s_churn": 5.0}),
        (edm_imagenet_64, {}),
    ],
)
def test_published_configurations_sample_as_published(x64, config, churn):
    """S_churn and the rest as on EDM's command line, so with churn at all levels."""
    fields = config.get_config()
    fields.sampling.update(churn)
    reader = Reader({"sampling": fields.sampling.to_dict()})
    schedule, solver = reader.build_all("sampling", (Schedule, Heun)).values()
    sde = PROCESSES["edm"]
    x = sample(KEY, two_points(sde), SHAPE, solver=solver, schedule=schedule).x
    count = {edm_cifar10: 18, edm_ffhq_64: 40, edm_imagenet_64: 256}[config]
    s = (80 ** (1 / 7) + np.linspace(0, 1, count) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    if config is edm_imagenet_64:
        churn = {"s_churn": 40.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}
    np.testing.assert_allclose(
        x, algorithm_2(prior(sde), s, **NO_CHURN | churn, everywhere=True), atol=1e-8
    )


def ablation(y, s, variable, scaling, stage, s_churn):
    """EDM's Algorithm 1 in their own variables, with Euler steps if there is no stage.

    dx/dt = (sigma' / sigma + c' / c) x - sigma' c / sigma D(x / c; sigma), x = c y (Eq. 81). Their
    time t as a function of sigma, and the derivatives, are those of Table 1.
    """
    sigma, slope, time = TIMES_OF[variable](s)
    c = {"none": lambda t: 1.0, "vp": lambda t: 1 / np.sqrt(1 + sigma(t) ** 2)}[scaling]
    c_slope = {"none": lambda t: 0.0, "vp": lambda t: -sigma(t) * slope(t) * c(t) ** 3}[scaling]

    def velocity(x, t):
        d = np.tanh(x / c(t) / sigma(t) ** 2)
        return (slope(t) / sigma(t) + c_slope(t) / c(t)) * x - slope(t) * c(t) / sigma(t) * d

    count, rows = len(s), 2 if stage else 1
    for i, here in enumerate(s):
        raised = (1 + min(s_churn / count, math.sqrt(2) - 1)) * here
        noise = fresh_noise(rows * i - 1) if i else first_noise()
        y = y + math.sqrt(raised**2 - here**2) * noise
        t = time(raised)
        x = c(t) * y
        h = (time(s[i + 1]) if i < count - 1 else 0.0) - t
        d = velocity(x, t)
        if stage and i < count - 1:
            second = velocity(x + stage * h * d, t + stage * h)
            d = (1 - 1 / (2 * stage)) * d + second / (2 * stage)
        x = x + h * d
        y = x / c(t + h) if i < count - 1 else x
    return y


def vp_time_of(s):
    slope = 2 * (np.log1p(s[-1] ** 2) / 1e-3 - np.log1p(s[0] ** 2)) / (1e-3 - 1)
    start = np.log1p(s[0] ** 2) - slope / 2

    def sigma(t):
        return np.sqrt(np.expm1(slope * t**2 / 2 + start * t))

    return (
        sigma,
        lambda t: (start + slope * t) * (sigma(t) + 1 / sigma(t)) / 2,
        lambda s: (np.sqrt(start**2 + 2 * slope * np.log1p(s**2)) - start) / slope,
    )


# The noise levels of the grid -> sigma(t), its derivative, and t(sigma).
TIMES_OF = {
    "sigma": lambda s: (lambda t: t, lambda t: 1.0, lambda s: s),
    "sigma2": lambda s: (np.sqrt, lambda t: 0.5 / np.sqrt(t), np.square),
    "vp_time": vp_time_of,
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [None, 1.0, 0.5])
@pytest.mark.parametrize("s_churn", [0.0, 20.0])
def test_every_variable_and_scaling_is_the_papers(x64, s_churn, stage):
    sde = PROCESSES["edm"]
    schedule = Schedule(grid="karras", steps=11, t_min=1e-3, final_step="none")
    s = ratio(sde, schedule.of(sde))
    order = {"order": 1} if stage is None else {"stage": stage}
    for variable, scaling in itertools.product(VARIABLES, SCALINGS):
        solver = Heun(
            variable=variable,
            scaling=scaling,
            final_euler=True,
            s_churn=s_churn,
            churn_all_levels=True,
            **order,
        )
        found = sample(KEY, two_points(sde), SHAPE, solver=solver, schedule=schedule)
        expected = ablation(prior(sde), s, variable, scaling, stage, s_churn)
        np.testing.assert_allclose(found.x, expected, atol=1e-8, err_msg=f"{variable}, {scaling}")
        assert found.nfe == (12 if stage is None else 23)


@pytest.mark.slow
def test_final_euler_step_in_sigma_is_the_final_step_denoise(x64):
    sde, schedule = PROCESSES["vp"], Schedule(grid="karras", steps=6, final_step="denoise")
    denoised = sample(KEY, two_points(sde), SHAPE, solver=Heun(), schedule=schedule)
    solver = Heun(final_euler=True)
    with pytest.raises(ValueError, match="final_step='denoise' has nothing to remove"):
        sample(KEY, two_points(sde), SHAPE, solver=solver, schedule=schedule)
    schedule = dataclasses.replace(schedule, final_step="none")
    stepped = sample(KEY, two_points(sde), SHAPE, solver=solver, schedule=schedule)
    np.testing.assert_allclose(stepped.x, denoised.x, rtol=1e-12)
    assert stepped.nfe == denoised.nfe == 13


@pytest.mark.parametrize("name", SDES)
def test_levels_above_the_largest_are_at_times_above_one(name):
    """The largest noise of any process can be raised by sqrt(2), to a time where alpha > 0."""
    sde = SDES[name]()
    times = Schedule(grid="karras", steps=5, t_min=0.01).of(sde)
    plan = Heun(s_churn=1e3, churn_all_levels=True).plan(sde, times)
    raised = ratio(sde, plan.times[::2])
    np.testing.assert_allclose(raised, math.sqrt(2) * ratio(sde, times), rtol=1e-9)
    assert 1 < plan.times[0] < 1.5


def test_noise_is_never_raised_above_the_processs_largest():
    sde = PROCESSES["edm"]
    times = Schedule(grid="karras", steps=17, t_min=2.5e-5).of(sde)
    plan = Heun(s_churn=40.0).plan(sde, times)
    assert plan.times.max() == 1
    assert plan.times[2] == pytest.approx(1, rel=1e-12)
    assert ratio(sde, plan.times[4]) == pytest.approx(math.sqrt(2) * ratio(sde, times[2]))
    added = plan.steps.noise[1::2]
    assert (added[:-1] > 0).all()
    assert added[-1] == 0
    assert not plan.steps.noise[::2].any()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
@every_process
def test_error_is_of_second_order(x64, sde, stage):
    """The flow keeps every sample's quantile, so that its end is known."""
    steps = np.array([40, 160])
    normal_cdf = np.vectorize(lambda z: 0.5 * math.erfc(-z / math.sqrt(2)))
    errors = []
    for count in steps:
        times = in_float64(
            sde.time_of_log_snr, -2 * np.linspace(np.log(50), np.log(0.5), count + 1)
        )
        alpha, s = in_float64(sde.alpha, times), ratio(sde, times)
        y = s[0] * np.linspace(-0.8, 0.8, 15).reshape(SHAPE)
        plan = Heun(stage=stage).plan(sde, times)
        end = np.asarray(run(KEYS, two_points(sde), jnp.asarray(alpha[0] * y), plan).x) / alpha[-1]
        quantile = [
            (normal_cdf((place - 1) / level) + normal_cdf((place + 1) / level)) / 2
            for place, level in ((y, s[0]), (end, s[-1]))
        ]
        errors.append(np.sqrt(np.mean((quantile[1] - quantile[0]) ** 2)))
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 1.8 < order < 2.3, errors
    assert errors[-1] < 1e-3


@pytest.mark.parametrize("stage", [0.5, 1.0])
@pytest.mark.slow
def test_processes_agree_in_y_on_the_same_levels(x64, stage):
    s = np.geomspace(50, 0.05, 13)
    paths = []
    for sde in (VPSDE(), SubVPSDE(), EDMSDE()):
        times = in_float64(sde.time_of_log_snr, -2 * np.log(s))
        start = jnp.asarray(in_float64(sde.alpha, times[0]) * 50 * fresh_noise(0))
        plan = Heun(stage=stage).plan(sde, times)
        # A frame after each step, none after its first stage.
        made = run(KEYS, two_points(sde), start, plan, frames=len(plan.times)).trajectory[::2]
        paths.append(made / in_float64(sde.alpha, times)[:, None, None])
    for path in paths[1:]:
        np.testing.assert_allclose(path, paths[0], rtol=1e-9)


def x0_of_a_gaussian(sde, x, t):
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    return (0.5 * sigma**2 + 0.3 * alpha * x) / (0.3 * alpha**2 + sigma**2)


@pytest.mark.slow
def test_churn_keeps_the_marginal():
    """Data of mean 0.5 and variance 0.3 in every element."""
    sde, t_min = PROCESSES["vp"], 1e-2
    denoiser = Denoiser(
        sde=sde, network=Partial(x0_of_a_gaussian, sde), parameterization="x0", conditioning="t"
    )
    schedule = Schedule(grid="karras", steps=80, t_min=t_min, final_step="none")
    x = sample(KEY, denoiser, (1000, 20), solver=Heun(s_churn=15.0), schedule=schedule).x
    alpha, sigma = in_float64(sde.alpha, t_min), in_float64(sde.sigma, t_min)
    variance = 0.3 * alpha**2 + sigma**2
    assert abs(x.mean() - 0.5 * alpha) < 4.5 * math.sqrt(variance / x.size)
    assert abs(x.var() / variance - 1) < 4.5 * math.sqrt(2 / x.size)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"stage": 0.0}, r"stage=0\.0 must lie in \(0, 1\]"),
        ({"stage": 1.5}, r"stage=1\.5 must lie in \(0, 1\]"),
        ({"order": 3}, r"order=3 is unknown; choose one of: 1, 2"),
        ({"order": 1, "stage": 0.5}, r"stage=0\.5 is not used with order=1"),
        ({"variable": "t"}, r"variable='t' is unknown; choose one of: sigma, sigma2, vp_time"),
        ({"scaling": "ve"}, r"scaling='ve' is unknown; choose one of: none, vp"),
        ({"s_churn": -1.0}, r"s_churn=-1\.0 must be at least 0"),
        ({"s_churn": math.inf}, "s_churn=inf must be at least 0 and finite"),
        ({"s_churn": 1.0, "churn_min": -0.1}, r"churn_min=-0\.1 must be at least 0"),
        (
            {"s_churn": 1.0, "churn_min": 2.0, "churn_max": 1.0},
            r"churn_max=1\.0 must be above churn_min=2\.0",
        ),
        ({"s_churn": 1.0, "churn_noise": 0.0}, r"churn_noise=0\.0 must be above 0"),
        ({"churn_min": 0.05}, r"churn_min=0\.05 is not used with s_churn=0; set s_churn above 0"),
        ({"churn_max": 50.0}, r"churn_max=50\.0 is not used with s_churn=0"),
        ({"churn_noise": 1.003}, r"churn_noise=1\.003 is not used with s_churn=0"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Heun(**fields)


@pytest.mark.parametrize(("steps", "churn_max"), [(1, math.inf), (12, 1e-3)])
def test_churn_that_meets_no_level_is_refused(steps, churn_max):
    sde = PROCESSES["edm"]
    times = Schedule(grid="karras", steps=steps).of(sde)
    with pytest.raises(ValueError, match=r"s_churn=10\.0 adds no noise: no noise level"):
        Heun(s_churn=10.0, churn_max=churn_max).plan(sde, times)
