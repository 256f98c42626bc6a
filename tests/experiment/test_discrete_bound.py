"""The discrete bound of an experiment: its denoiser and its times, from what a checkpoint has."""

import numpy as np
import pytest
from command_line import TINY, configuration

from errors import ConfigError
from experiment.build import build
from experiment.sampler import Checkpoint
from jobs.moments import _times
from solvers.moments import EpsMoments
from solvers.tables import coefficients_at

OPTIMAL = {"discrete_bound.timestep_choice": "optimal", "discrete_bound.steps": 4}
FIELDS = TINY | OPTIMAL | {"discrete_bound.variance": "analytic", "analytic_dpm.num_times": 20}


def built(fields):
    return build(configuration(fields))


def measured(experiment):
    """A checkpoint with moments that were measured for a configuration."""
    sde, times = experiment.model.sde, _times(experiment, experiment.model.sde)
    at = coefficients_at(sde, times)
    values = at.sigma**2 / (0.3 * at.alpha**2 + at.sigma**2)
    moments = EpsMoments(times=times, half_log_snr=at.half_log_snr, values=values, errors=0 * times)
    return Checkpoint(step=1, denoiser=experiment.model.denoiser({}), moments=moments)


def test_optimal_times_and_variances_come_from_the_moments():
    experiment = built(FIELDS)
    assert experiment.likelihood.discrete_bound.options.needs == {"moments"}
    checkpoint = measured(experiment)
    denoiser, times = experiment.likelihood.discrete_bound.of(checkpoint, experiment.data.limits)
    assert len(times) == 5
    assert (times[0], times[-1]) == (1, 1e-5)
    assert set(times[:-1]) <= set(checkpoint.moments.times)
    at = coefficients_at(experiment.model.sde, times[:-1])
    expected = 0.3 * at.alpha**2 / (0.3 * at.alpha**2 + at.sigma**2)
    np.testing.assert_allclose(denoiser.uncertainty.values, expected, rtol=1e-5)


@pytest.mark.slow
def test_moments_are_measured_as_far_as_sampler_and_bound_need_them():
    """The times for the sampler stay as they are, and the others go on at their distances."""
    plain = _times(built(TINY | {"analytic_dpm.num_times": 20}), built(TINY).model.sde)
    experiment = built(FIELDS)
    times = _times(experiment, experiment.model.sde)
    assert len(plain) == 20
    np.testing.assert_array_equal(times[:20], plain)
    assert times[-1] == 1e-5
    gaps = np.diff(coefficients_at(experiment.model.sde, times).half_log_snr)
    assert gaps.max() < gaps[0] * 1.001
    assert gaps[20:].min() > gaps[0] / 2


@pytest.mark.slow
def test_moments_that_end_too_early_are_refused_with_the_remedy():
    checkpoint = measured(built(TINY))
    fine = FIELDS | {"discrete_bound.timestep_choice": "grid", "discrete_bound.steps": 40}
    for fields in (FIELDS, fine):
        experiment = built(fields)
        with pytest.raises(
            ConfigError, match=r"config\.discrete_bound: the moments end at t=0\.001"
        ):
            experiment.likelihood.discrete_bound.of(checkpoint, experiment.data.limits)
    below = TINY | {"sampling.t_min": 1e-4, "sampling.steps": 100}
    sampler = built(below | {"sampling.name": "analytic"}).sampler
    with pytest.raises(ConfigError, match=r"config\.sampling: the moments end .*--mode=moments"):
        sampler.check(checkpoint)
    ancestral = TINY | {"sampling.predictor": "ancestral", "sampling.variance": "analytic"}
    assert built(ancestral).sampler.needs == {"moments"}
    built(ancestral).sampler.check(checkpoint)
    with pytest.raises(ConfigError, match=r"config\.sampling: the moments end"):
        built(ancestral | {"sampling.t_min": 1e-4}).sampler.check(checkpoint)


def test_impossible_times_are_refused_where_the_bound_is_measured():
    many = TINY | {"discrete_bound.t_min": 1 - 1e-6, "discrete_bound.steps": 1000}
    assert built(many).config["discrete_bound"]["steps"] == 1000
    with pytest.raises(ConfigError, match=r"^config\.discrete_bound.*times coincide"):
        built(many | {"eval.metrics": ("discrete_bound",)})
