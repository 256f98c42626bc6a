"""Metropolis-adjusted Langevin against exact laws, whatever the step size."""

import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import assert_samples_follow, gaussian, standardized_mixture
from command_line import TINY, configuration

from errors import ConfigError
from experiment.build import build
from numerics.arrays import sample_keys
from sampling import Step, run, sample
from sde_lib import VPSDE
from solvers.langevin import LangevinDynamics
from solvers.mala import MALA, MALACorrector
from solvers.predictor_corrector import EulerMaruyama, PredictorCorrector
from time_grids import Schedule

KEY = jax.random.key(0)
SDE = VPSDE()
T_MIN = 0.3
GAUSSIAN = gaussian([0.5, -0.5], np.diag([0.04, 0.01]))


@pytest.mark.slow
def test_stationary_law_is_exact_where_that_of_langevin_is_not():
    """6000 chains of 40 steps; the variance of plain Langevin is V / (1 - h / 2 V)."""
    step_size = 1.0
    schedule = Schedule(steps=40, t_min=T_MIN, final_step="none")
    truth = GAUSSIAN.marginal(SDE, T_MIN)
    variance = np.diag(truth.covariances[0])
    denoiser, shape = GAUSSIAN.energy_denoiser(SDE), (6000, 2)
    adjusted = sample(KEY, denoiser, shape, solver=MALA(step_size=step_size), schedule=schedule)
    x = np.asarray(adjusted.x, float)
    assert np.all(np.abs(x.mean(axis=0) - truth.means[0]) < 4.5 * np.sqrt(variance / 6000))
    assert np.all(np.abs(x.var(axis=0) / variance - 1) < 4.5 * np.sqrt(2 / 6000))
    assert adjusted.nfe == 40
    assert 0.6 < np.mean(adjusted.acceptance) < 0.75
    plain = LangevinDynamics(step_size=step_size)
    plain = sample(KEY, denoiser, shape, solver=plain, schedule=schedule)
    assert plain.acceptance is None
    h = step_size * float(SDE.sigma(jnp.asarray(T_MIN))) ** 2
    bias = np.var(np.asarray(plain.x, float), axis=0) / variance
    np.testing.assert_allclose(bias, 1 / (1 - h / (2 * variance)), rtol=0.1)
    assert np.all(bias > 1.25)


@pytest.mark.slow
def test_chains_that_start_in_a_mixture_stay_in_it():
    """Exact draws of p_t stay exact draws of it, by long steps of the sampler and the corrector."""
    data, t = standardized_mixture(), jnp.asarray(0.05)
    truth = data.marginal(SDE, 0.05)
    x, keys = jnp.asarray(truth.sample(1, 6000), jnp.float32), sample_keys(KEY, jnp.arange(6000))
    denoiser = data.energy_denoiser(SDE)
    corrector = MALACorrector(snr=0.9, corrector_steps=10)
    found = corrector.step(keys, denoiser, Step(x, x, jnp.zeros(6000)), t, t)
    assert_samples_follow(found.x, truth)
    assert corrector.evaluations == 11
    assert 0.2 < np.mean(found.accepted) < 0.9
    assert np.mean(np.any(found.x != x, axis=1)) > 0.9
    # Plain Langevin steps of the same size widen it.
    plain = LangevinDynamics(step_size=1.62).plan(SDE, np.full(11, 0.05))
    widened = run(keys, denoiser, x, plan=plain).x
    with pytest.raises(AssertionError):
        assert_samples_follow(widened, truth)


@pytest.mark.slow
def test_sample_depends_on_its_key_alone_and_correctors_report_their_rate():
    corrector = MALACorrector(corrector_steps=2)
    solver = PredictorCorrector(predictor=EulerMaruyama(), corrector=corrector)
    assert solver.evaluations == 4
    options = {"solver": solver, "schedule": Schedule(steps=4, final_step="none")}
    denoiser = GAUSSIAN.energy_denoiser(SDE)
    whole = sample(KEY, denoiser, (4, 2), **options)
    part = sample(KEY, denoiser, (2, 2), indices=jnp.array([3, 1]), **options)
    np.testing.assert_allclose(part.x, whole.x[jnp.array([3, 1])], rtol=1e-5, atol=1e-6)
    assert np.all((whole.acceptance > 0) & (whole.acceptance <= 1))


FIELDS = TINY | {"denoiser.energy": True, "sampling.variant": None}


def built(**fields):
    fields = FIELDS | {name.replace("__", "."): value for name, value in fields.items()}
    return build(configuration(fields), overrides=frozenset(fields))


MALA_OF_PC = {"sampling__name": "pc", "sampling__corrector": "mala", "sampling__order": None}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sampling__name": "mala", "denoiser__energy": False},
            "config.sampling.name='mala' compares densities, which a network has with "
            "config.denoiser.energy=True; train one with that, or choose "
            "config.sampling.name=langevin",
        ),
        (
            MALA_OF_PC | {"denoiser__energy": False},
            "config.sampling.corrector='mala' compares densities, which a network has with "
            "config.denoiser.energy=True; train one with that, or choose "
            "config.sampling.corrector=langevin or annealed_langevin",
        ),
        (
            {"sampling__name": "mala", "sampling__clip": "range"},
            "config.sampling.name='mala' compares densities, which a score with "
            "config.sampling.clip='range' does not have; set it to none",
        ),
        (
            {"sampling__name": "mala", "task__name": "deblur", "task__input": "test:0"},
            "config.sampling.name='mala' compares densities, which a score with "
            "config.task.name='deblur' does not have; choose another sampler",
        ),
        (
            MALA_OF_PC | {"sampling__discretization": "published"},
            "config.sampling.discretization='published' does not exist for MALACorrector; choose "
            "exact",
        ),
        ({"sampling__name": "mala", "sampling__step_size": 0.0}, "config.sampling.step_size=0.0"),
    ],
)
def test_what_has_no_density_is_refused(fields, message):
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        built(**fields)


def test_missing_package_is_one_line_with_the_remedy(monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    message = r"^config\.sampling\.name='mala' needs a package .* install blackjax, .* langevin$"
    with pytest.raises(ConfigError, match=message):
        built(sampling__name="mala")


@jax.tree_util.register_static
class Origin:
    """A projection onto the origin."""

    def project(self, keys, sde, x, t):
        return 0 * x

    def project_final(self, x0):
        return 0 * x0


def test_projection_is_refused_where_it_would_leave_the_density_behind():
    denoiser = GAUSSIAN.energy_denoiser(SDE)
    with pytest.raises(ValueError, match=r"^MALA keeps the density of x.* choose another solver"):
        sample(KEY, denoiser, (2, 2), solver=MALA(), projection=Origin())
    schedule = Schedule(steps=2, t_min=T_MIN)
    solver = PredictorCorrector(predictor=EulerMaruyama(), corrector=MALACorrector())
    found = sample(KEY, denoiser, (2, 2), solver=solver, schedule=schedule, projection=Origin())
    assert not np.any(found.x)
