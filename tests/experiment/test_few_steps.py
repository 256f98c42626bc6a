"""Consistency models and students are sampled as they are trained; all else is refused."""

import numpy as np
import pytest
from command_line import TINY, configuration

from errors import ConfigError
from evaluation.evaluate import extractors_of
from experiment.build import build
from experiment.configurations import load_configuration
from jobs.workdir import Workdir
from solvers.consistency import ConsistencySampler
from solvers.ddim import DDIM

MODEL = {
    "loss.name": "consistency_training",
    "denoiser.parameterization": "consistency",
    "sampling.name": "consistency",
}
STUDENT = {
    "loss.name": "progressive_distillation",
    "loss.teacher": "runs/teacher",
    "loss.student_steps": 4,
    "denoiser.parameterization": "v",
    "weight.name": "v",
}


def built(fields, overrides=()):
    return build(configuration(TINY | fields), overrides=overrides)


def test_consistency_model_is_sampled_by_its_own_solver():
    sampler = built(MODEL | {"sampling.steps": 2}).sampler
    assert isinstance(sampler.solve.solver, ConsistencySampler)
    assert sampler.evaluations == 2
    assert sampler.solve.schedule.final_step == "mean"


@pytest.mark.slow
def test_student_is_sampled_at_the_times_that_it_is_trained_at():
    """Whatever the file says of sampling, and with the steps of config.loss alone."""
    experiment = built(STUDENT | {"loss.grid": "quadratic", "loss.t_min": 1e-2})
    solve = experiment.sampler.solve
    assert isinstance(solve.solver, DDIM)
    assert experiment.sampler.evaluations == 4
    trained = experiment.trainer.loss.teacher_times(experiment.model.sde)
    np.testing.assert_allclose(solve.schedule.of(experiment.model.sde), trained[::2])
    np.testing.assert_allclose(trained, (1 - 0.9 * np.linspace(0, 1, 9)) ** 2)


def test_length_of_training_reaches_the_curriculum():
    assert built(MODEL | {"training.steps": 77}).trainer.loss.total_steps == 77


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"loss.name": "consistency_distillation"},
            r"config\.loss\.teacher='' is missing: .*--config\.loss\.teacher=RUN or RUN:STEP",
        ),
        (
            {"denoiser.parameterization": "eps"},
            r"loss\.name='consistency_training' needs .*parameterization=consistency, not 'eps'",
        ),
        (
            {"loss.name": "denoising"},
            r"parameterization='consistency' needs config\.loss\.name=consistency_distillation or "
            r"consistency_training, not 'denoising'",
        ),
        (
            {"loss.name": "denoising", "denoiser.parameterization": "eps"},
            r"sampling\.name='consistency' needs a consistency model.*; choose another",
        ),
        (
            {"sampling.name": "unipc"},
            r"sampling\.name='unipc' needs scores at all times.*; choose consistency",
        ),
        (
            {"guidance.name": "classifier", "guidance.scale": 2.0},
            r"guidance\.name='classifier' needs scores at all times.*; set it to none",
        ),
        (
            {"task.name": "inpaint", "task.input": "test", "task.mask": "left"},
            r"task\.name='inpaint' needs scores at all times.*; choose generate",
        ),
        (
            {"sde.name": "ve"},
            r"denoiser\.sigma_min=0\.002 is no noise level.*; give one from 0\.01 to 50",
        ),
        ({"loss.huber": 0.0}, r"config\.loss\.huber=0\.0 must be above 0"),
        ({"loss.last_intervals": 5}, r"loss\.last_intervals=5 must be at least first_intervals=10"),
    ],
)
def test_what_does_not_suit_a_consistency_model_is_refused(fields, message):
    assert_refused(MODEL | fields, message)


@pytest.mark.parametrize(
    ("fields", "overrides", "message"),
    [
        ({"loss.teacher": ""}, (), r"config\.loss\.teacher='' is missing"),
        (
            {"sampling.steps": 5},
            ("sampling.steps",),
            r"config\.sampling has other steps than the student is trained for; give "
            r"config\.sampling\.steps=4 grid=uniform t_min=0\.001 final_step=none",
        ),
        ({"sampling.grid": "log_snr"}, ("sampling.grid",), "config.sampling has other steps"),
        ({"sampling.t_min": 0.01}, ("sampling.t_min",), "config.sampling has other steps"),
        ({"sampling.final_step": "denoise"}, ("sampling.final_step",), "has other steps"),
        ({"sampling.eta": 1.0}, ("sampling.eta",), "has other steps"),
        ({"sampling.name": "heun"}, ("sampling.name",), r"needs scores at all.*choose ddim"),
        ({"weight.name": "sigma2"}, (), r"weight\.name='sigma2' gives pure noise.*truncated_snr"),
        ({"denoiser.parameterization": "eps"}, (), r"='eps' gives no x0 for pure.*choose v, x0"),
        ({"times.name": "log_snr"}, ("times.name",), r"config\.times\.name is not used with"),
        ({"loss.student_steps": 0}, (), r"config\.loss\.student_steps=0 must be at least 1"),
    ],
)
def test_what_does_not_suit_a_student_is_refused(fields, overrides, message):
    assert_refused(STUDENT | fields, message, overrides)


def assert_refused(fields, message, overrides=()):
    with pytest.raises(ConfigError, match=message) as caught:
        built(fields, overrides)
    assert str(caught.value).startswith("config.")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [MODEL, STUDENT])
def test_likelihoods_are_refused_and_samples_are_evaluated(fields, tmp_path):
    metrics = ("bits_per_dim", "frechet")
    message = r"bits_per_dim needs scores at all times.*; give config\.eval\.metrics=\('frechet',\)"
    with pytest.raises(ConfigError, match=message):
        extractors_of(built(fields | {"eval.metrics": metrics}), Workdir(tmp_path))
    extractors_of(built(fields | {"eval.metrics": ("frechet",)}), Workdir(tmp_path))


def test_final_step_after_the_last_prediction_is_refused():
    message = r"config\.sampling\.final_step='denoise' has nothing to remove.*; choose mean"
    fields = MODEL | {"sampling.final_step": "denoise"}
    assert_refused(fields, message, ("sampling.final_step",))


def test_weight_on_the_command_line_is_refused_where_the_objective_has_its_own():
    message = r"config\.weight\.name is not used with config\.loss\.name='consistency_training'"
    assert_refused(MODEL | {"weight.name": "v"}, message, ("weight.name",))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["teacher", "training", "distillation", "progressive"])
def test_configurations_of_the_digits_are_built(variant):
    build(load_configuration(f"configs/consistency_digits.py:{variant}"))
