"""The sampling loop and the flow sampler: determinism, snapshots, evaluations, what is returned."""

import dataclasses
import itertools
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import assert_samples_follow, standardized_mixture

from denoising import Denoiser
from errors import SamplingError
from likelihood import LikelihoodOptions, log_prob
from numerics.arrays import fold_in_each, normal_like, sample_keys
from numerics.clipping import Clipping
from numerics.ode import ODEOptions, integrate
from numerics.stochastic import SDEOptions
from sampling import Plan, Step, sample
from sde_lib import VESDE, VPSDE, SubVPSDE
from solvers.dpm_adaptive import DPMAdaptive, sample_adaptive
from solvers.dpm_solver import DPMSolver
from solvers.ode import FlowOptions, sample_ode
from solvers.predictor_corrector import (
    Ancestral,
    AnnealedLangevin,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
)
from solvers.sde import sample_sde
from time_grids import FINAL_STEPS, TIME_GRIDS, Schedule
from training.parallel import DataParallel

KEY = jax.random.key(0)
PROCESSES = {"vp": VPSDE(), "subvp": SubVPSDE(), "ve": VESDE(sigma_max=20.0)}
every_process = pytest.mark.parametrize("sde", PROCESSES.values(), ids=PROCESSES)
MIXTURE = standardized_mixture(dims=8)
PLANE = standardized_mixture(dims=2)
BATCH, T_MIN = 1000, 1e-3
TIGHT = ODEOptions(rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@every_process
def test_flow_samples_follow_the_marginal(sde):
    """1000 samples in 8 dimensions, without a bias but the prior's."""
    options, ode = FlowOptions(t_min=T_MIN, final_step="none"), ODEOptions(rtol=1e-4, atol=1e-4)
    samples = sample_ode(KEY, MIXTURE.denoiser(sde), (BATCH, 8), options=options, ode=ode)
    assert_samples_follow(samples.x, MIXTURE.marginal(sde, T_MIN), bias=0.005)


def flow_and_its_samples():
    """The denoiser, where sampling stops, and 16 samples of the flow to nine digits."""
    denoiser, t_min = PLANE.denoiser(PROCESSES["vp"]), 0.05
    options = FlowOptions(t_min=t_min, final_step="none")
    return denoiser, t_min, sample_ode(KEY, denoiser, (16, 2), options=options, ode=TIGHT).x


@pytest.mark.slow
def test_euler_without_churn_converges_to_the_flow_at_first_order(x64):
    denoiser, t_min, truth = flow_and_its_samples()
    solver = PredictorCorrector(predictor=EulerMaruyama(churn=0.0))
    steps, errors = [100, 400], []
    for count in steps:
        schedule = Schedule(steps=count, t_min=t_min, final_step="none")
        x = sample(KEY, denoiser, (16, 2), solver=solver, schedule=schedule).x
        errors.append(np.sqrt(np.mean((x - truth) ** 2)))
    order = -np.polyfit(np.log(steps), np.log(errors), 1)[0]
    assert 0.9 < order < 1.1, f"errors {errors}"


@pytest.mark.slow
def test_encoding_and_decoding_are_inverse(x64):
    """The likelihood's latent is the prior noise that the flow sampler started from, and back."""
    denoiser, t_min, x = flow_and_its_samples()
    encoding = LikelihoodOptions(t_min=t_min)
    latent = log_prob(KEY, denoiser, x, options=encoding, ode=TIGHT).latent
    prior = denoiser.sde.prior_sample(fold_in_each(sample_keys(KEY, jnp.arange(16)), 0), x)
    np.testing.assert_allclose(latent, prior, atol=1e-6)

    def field(t, y, _):
        return denoiser.ode_velocity(y[None], t)[0]

    decoded = integrate(field, latent, None, t0=1.0, t1=t_min, options=TIGHT).y
    np.testing.assert_allclose(decoded, x, atol=1e-6)


@dataclass(frozen=True)
class AddsTimes:
    """A solver that adds up the lengths of its steps, and one noise per step."""

    evaluations = 3

    def plan(self, sde, times):
        return Plan(self, (times[:-1], times[1:]), times)

    def start(self, x):
        return Step(x, x)

    def step(self, keys, denoiser, state, step, project):
        t, s = step
        return Step(state.x + (t - s), state.mean + normal_like(keys, state.x))


def idle(x, t):
    return jnp.zeros_like(x)


def counting_denoiser(calls):
    def network(x, t):
        jax.debug.callback(lambda t: calls.append(t), t[0])
        return x

    return Denoiser(sde=PROCESSES["vp"], network=network)


def prior_of(sde, count, dims):
    keys = fold_in_each(sample_keys(KEY, jnp.arange(count)), 0)
    return sde.prior_sample(keys, jnp.zeros((count, dims)))


@pytest.mark.parametrize("grid", TIME_GRIDS)
@every_process
@pytest.mark.slow
def test_loop_runs_the_whole_grid_from_the_prior(sde, grid):
    denoiser = Denoiser(sde=sde, network=idle)
    schedule = Schedule(grid=grid, steps=20, t_min=T_MIN, final_step="none")
    samples = sample(KEY, denoiser, (2, 3), solver=AddsTimes(), schedule=schedule)
    added = samples.x - prior_of(sde, 2, 3)
    np.testing.assert_allclose(added, 1 - T_MIN, rtol=1e-4)
    assert samples.nfe == 60
    assert samples.trajectory is None


@pytest.mark.slow
def test_every_step_and_sample_draws_fresh_noise():
    denoiser = Denoiser(sde=PROCESSES["vp"], network=idle)
    schedule = Schedule(steps=50, final_step="mean")
    samples = sample(KEY, denoiser, (100, 8), solver=AddsTimes(), schedule=schedule)
    added = np.asarray(samples.x - prior_of(PROCESSES["vp"], 100, 8))
    # 50 independent steps of variance 1; repeated noise would give up to 2500
    assert abs(added.var() / 50 - 1) < 4.5 * np.sqrt(2 / 800)


@pytest.mark.slow
def test_steps_replace_those_of_the_schedule():
    denoiser, shape = MIXTURE.denoiser(PROCESSES["vp"]), (3, 8)
    short = sample(KEY, denoiser, shape, solver=DPMSolver(), steps=7)
    assert short.nfe == 8
    expected = sample(KEY, denoiser, shape, solver=DPMSolver(), schedule=Schedule(steps=7))
    np.testing.assert_array_equal(short.x, expected.x)


@pytest.mark.slow
@pytest.mark.parametrize(
    "draw",
    [
        partial(sample, solver=DPMSolver(), steps=5),
        partial(sample_ode, ode=ODEOptions(rtol=1e-2, atol=1e-2)),
        partial(sample_sde, solving=SDEOptions(steps=5)),
        partial(sample_adaptive, options=DPMAdaptive(rtol=0.5)),
    ],
    ids=["fixed steps", "ode", "sde", "dpm_adaptive"],
)
def test_clipping_of_a_sampler_clips_its_denoiser(draw):
    denoiser, clipping = MIXTURE.denoiser(PROCESSES["vp"]), Clipping(clip="range", low=0.0)
    clipped = draw(KEY, denoiser, (3, 8), clipping=clipping).x
    expected = draw(KEY, dataclasses.replace(denoiser, clipping=clipping), (3, 8)).x
    np.testing.assert_array_equal(clipped, expected)
    assert np.abs(clipped - draw(KEY, denoiser, (3, 8)).x).max() > 0.1


@pytest.mark.slow
def test_without_predictor_and_corrector_samples_are_the_priors():
    denoiser = Denoiser(sde=PROCESSES["ve"], network=idle)
    solver, schedule = PredictorCorrector(predictor=None), Schedule(steps=10, final_step="none")
    samples = sample(KEY, denoiser, (4, 3), solver=solver, schedule=schedule)
    np.testing.assert_allclose(samples.x, prior_of(PROCESSES["ve"], 4, 3), rtol=1e-6)
    assert samples.nfe == 0


@pytest.mark.slow
@pytest.mark.parametrize("final_step", FINAL_STEPS)
@pytest.mark.parametrize(
    "solver",
    [
        PredictorCorrector(predictor=ReverseDiffusion(), corrector=Langevin(corrector_steps=2)),
        PredictorCorrector(predictor=EulerMaruyama()),
        PredictorCorrector(predictor=None, corrector=AnnealedLangevin(corrector_steps=3)),
    ],
    ids=["3", "1", "0+3"],
)
def test_nfe_is_the_number_of_network_calls(solver, final_step):
    calls = []
    schedule = Schedule(steps=20, final_step=final_step)
    samples = sample(KEY, counting_denoiser(calls), (2, 3), solver=solver, schedule=schedule)
    jax.effects_barrier()
    assert samples.nfe == len(calls)


@pytest.mark.slow
@pytest.mark.parametrize("final_step", ["denoise", "none"])
def test_nfe_of_the_flow_is_the_number_of_network_calls(final_step):
    calls = []
    options = FlowOptions(final_step=final_step)
    samples = sample_ode(
        KEY, counting_denoiser(calls), (1, 3), options=options, ode=ODEOptions(rtol=1e-3)
    )
    jax.effects_barrier()
    assert samples.nfe == len(calls)


@pytest.mark.slow
def test_final_step_is_the_state_its_mean_or_tweedies_estimate():
    sde = PROCESSES["vp"]
    denoiser, prior = PLANE.denoiser(sde), prior_of(sde, 4, 2)
    finished, solver = {}, PredictorCorrector(predictor=Ancestral())
    for final_step in FINAL_STEPS:
        schedule = Schedule(steps=1, t_min=0.5, final_step=final_step)
        finished[final_step] = sample(KEY, denoiser, (4, 2), solver=solver, schedule=schedule).x
    keys = fold_in_each(sample_keys(KEY, jnp.arange(4)), 1)
    t, s = jnp.float32(1), jnp.float32(0.5)
    step = solver.step(keys, denoiser, Step(prior, prior), (t, s, s), lambda keys, state, t: state)
    np.testing.assert_allclose(finished["none"], step.x, atol=1e-4)
    np.testing.assert_allclose(finished["mean"], step.mean, atol=1e-4)
    score = PLANE.marginal(sde, 0.5).score(step.x)
    tweedie = (step.x + sde.sigma(s) ** 2 * score) / sde.alpha(s)
    np.testing.assert_allclose(finished["denoise"], tweedie, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_final_step_of_the_flow_is_the_state_or_tweedies_estimate():
    sde, t_min = PROCESSES["vp"], 0.3
    x, x0 = (
        sample_ode(
            KEY,
            PLANE.denoiser(sde),
            (4, 2),
            options=FlowOptions(t_min=t_min, final_step=final_step),
            ode=ODEOptions(),
        ).x
        for final_step in ("none", "denoise")
    )
    score, t = PLANE.marginal(sde, t_min).score(x), jnp.float32(t_min)
    tweedie = (x + sde.sigma(t) ** 2 * score) / sde.alpha(t)
    np.testing.assert_allclose(x0, tweedie, rtol=1e-3, atol=1e-4)


DETERMINISM = PredictorCorrector(predictor=ReverseDiffusion(), corrector=Langevin())


def draw_pc(indices, **options):
    schedule = Schedule(steps=20)
    shape = (len(indices), 8)
    denoiser = MIXTURE.denoiser(PROCESSES["vp"])
    return sample(
        KEY, denoiser, shape, solver=DETERMINISM, schedule=schedule, indices=indices, **options
    )


def draw_table(indices, **options):
    denoiser = MIXTURE.denoiser(PROCESSES["vp"])
    solver, shape = DPMSolver(eta=1.0), (len(indices), 8)
    schedule = Schedule(steps=20)
    return sample(
        KEY, denoiser, shape, solver=solver, schedule=schedule, indices=indices, **options
    )


def draw_flow(indices, **options):
    flow, ode = FlowOptions(), ODEOptions(rtol=1e-5, atol=1e-5)
    denoiser = MIXTURE.denoiser(PROCESSES["vp"])
    return sample_ode(
        KEY, denoiser, (len(indices), 8), options=flow, ode=ode, indices=indices, **options
    )


# Bit for bit; the flow to within its solver's tolerance, as other roundings may take other steps.
@pytest.mark.slow
@pytest.mark.parametrize(("draw", "atol"), [(draw_pc, 0), (draw_table, 0), (draw_flow, 1e-3)])
def test_sample_is_a_function_of_seed_and_number_alone(draw, atol):
    def in_parts_of(rows):
        return np.concatenate([draw(jnp.arange(i, i + rows)).x for i in range(0, 12, rows)])

    together = draw(jnp.arange(12)).x
    np.testing.assert_allclose(in_parts_of(4), together, rtol=0, atol=atol)
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_allclose(draw(jnp.asarray(order)).x, together[order], rtol=0, atol=atol)
    split = draw(DataParallel.over_all_devices().split_rows(np.arange(12))).x
    assert len(split.sharding.device_set) == 4
    np.testing.assert_allclose(split, in_parts_of(3), rtol=0, atol=atol)
    # On some processors XLA of JAX 0.12 rounds three rows in another way than twelve.
    np.testing.assert_allclose(split, together, rtol=0, atol=max(atol, 1e-5))
    assert len(np.unique(np.asarray(together), axis=0)) == 12


@pytest.mark.slow
@pytest.mark.parametrize("draw", [draw_pc, draw_flow])
def test_trajectory_goes_from_the_prior_to_the_samples(draw):
    samples = draw(jnp.arange(4), frames=5)
    frames, *shape = samples.trajectory.shape
    assert tuple(shape) == (4, 8)
    assert frames == 5
    np.testing.assert_array_equal(samples.trajectory[-1], samples.x)
    np.testing.assert_array_equal(samples.trajectory[0], prior_of(PROCESSES["vp"], 4, 8))
    np.testing.assert_allclose(draw(jnp.arange(4)).x, samples.x, atol=1e-3)
    changes = [np.abs(b - a).max() for a, b in itertools.pairwise(samples.trajectory)]
    assert min(changes) > 0


@pytest.mark.slow
def test_progress_adds_up_to_the_steps():
    done = []
    draw_pc(jnp.arange(4), progress=lambda *numbers: done.append(numbers))
    assert done == [(steps, 20) for steps in range(2, 21, 2)]


def test_snapshots_are_taken_at_the_given_times():
    every = draw_pc(jnp.arange(4), frames=21)
    np.testing.assert_allclose(every.times, Schedule(steps=20).of(PROCESSES["vp"]))
    some = draw_pc(jnp.arange(4), frames=[0.74, 1.0, 0.1])
    np.testing.assert_allclose(some.times, every.times[[0, 5, 18]])
    np.testing.assert_array_equal(some.trajectory, every.trajectory[[0, 5, 18]])


@pytest.mark.slow
def test_nan_is_reported_with_its_time():
    def network(x, t):
        return jnp.where((t < 500)[:, None] & (jnp.arange(len(x)) % 2 == 0)[:, None], jnp.nan, x)

    denoiser = Denoiser(sde=PROCESSES["vp"], network=network)
    solver = PredictorCorrector(predictor=ReverseDiffusion())
    message = r"2 of 4 samples became NaN .* between t=0\.50\d* and t=0\.45\d* \(step 11 of 20\)"
    with pytest.raises(SamplingError, match=message):
        sample(KEY, denoiser, (4, 2), solver=solver, schedule=Schedule(steps=20))


def test_number_of_steps_needs_no_compilation():
    """Otherwise every other number would cost a compilation of the network."""
    traced = []

    def network(x, t):
        traced.append(None)
        return x

    denoiser = Denoiser(sde=PROCESSES["vp"], network=network)
    solver = PredictorCorrector(predictor=EulerMaruyama())
    for steps in (3, 10, 1000):
        sample(KEY, denoiser, (2, 2), solver=solver, schedule=Schedule(steps=steps))
        assert len(traced) == 2  # of a step, and of the evaluation that denoises


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: FlowOptions(final_step="mean"),
            "final_step='mean' is unknown; choose one of: denoise, none",
        ),
        (lambda: FlowOptions(t_min=2.0), r"t_min=2\.0 must lie in \(0, 1\)"),
    ],
)
def test_invalid_field_of_the_flow_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
