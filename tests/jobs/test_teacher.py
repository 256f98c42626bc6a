"""Distillation from a run: its teacher, its first parameters, and its resumption."""

import dataclasses

import jax
import numpy as np
import pytest
from command_line import TINY, configuration
from flax import linen as nn

from errors import ConfigError
from experiment.build import build
from experiment.randomness import base_key
from jobs.plan import describe
from jobs.teacher import load_teacher
from jobs.train import train
from jobs.training_job import model_job
from jobs.workdir import Workdir
from models import NETWORKS
from training.checkpoints import Checkpoints
from training.parallel import DataParallel

BASE = TINY | {
    "model.name": "small",
    "training.steps": 2,
    "training.checkpoint_every": 2,
    "denoiser.parameterization": "edm",
    "weight.name": "edm",
}
STUDENT = BASE | {
    "loss.name": "progressive_distillation",
    "loss.student_steps": 4,
    "weight.name": "v",
    "training.steps": 4,
}
CONSISTENT = BASE | {
    "loss.name": "consistency_distillation",
    "denoiser.parameterization": "consistency",
    "sampling.name": "consistency",
    "training.steps": 4,
}


def experiment_of(fields):
    return build(configuration(fields))


def trained(fields, workdir):
    train(model_job(experiment_of(fields)), Workdir(workdir))
    return str(workdir)


class Small(nn.Module):
    """A network of two layers, compiled in no time."""

    features: int = 4

    @staticmethod
    def validate(image_size, channels):
        pass

    @nn.compact
    def __call__(self, x, cond, *, train):
        hidden = nn.Dense(self.features)(x) + cond[:, None, None, None]
        return nn.Dense(x.shape[-1])(nn.gelu(hidden))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "small", Small)
        yield trained(BASE, tmp_path_factory.mktemp("runs") / "teacher")


def state_of(experiment, workdir):
    template = experiment.trainer.abstract_state()
    return Checkpoints(Workdir(workdir).checkpoints).restore(template).state


def assert_equal(first, second):
    jax.tree.map(np.testing.assert_array_equal, first, second)


@pytest.mark.slow
@pytest.mark.parametrize("fields", [STUDENT, CONSISTENT], ids=["progressive", "consistency"])
def test_run_stopped_and_resumed_is_the_run_that_never_stopped(fields, teacher, tmp_path):
    fields = fields | {"loss.teacher": teacher, "loss.last_intervals": 40}
    if fields["loss.name"] == "progressive_distillation":
        del fields["loss.last_intervals"]
    trained(fields, tmp_path / "whole")
    halted = experiment_of(fields)
    job = model_job(halted)
    first = dataclasses.replace(job.options, steps=2)
    train(dataclasses.replace(job, options=first), Workdir(tmp_path / "parts"))
    trained(fields, tmp_path / "parts")
    states = [state_of(halted, tmp_path / name) for name in ("whole", "parts")]
    assert_equal(states[0], states[1])
    assert int(states[0].step) == 4


@pytest.mark.slow
def test_student_starts_with_the_parameters_of_its_teacher(teacher, tmp_path, capsys):
    """After a step with learning rate 0, it still has them, as its averages."""
    fields = CONSISTENT | {"loss.teacher": teacher, "training.steps": 1, "optim.warmup": 10**6}
    trained(fields, tmp_path / "student")
    assert "the student starts with the teacher's parameters" in capsys.readouterr().out
    source = state_of(experiment_of(BASE), teacher)
    state = state_of(experiment_of(fields), tmp_path / "student")
    assert_equal(state.params, source.ema_params)
    wider = fields | {"model.features": 16}
    trained(wider, tmp_path / "wider")
    assert "so the student starts with random parameters" in capsys.readouterr().out


@pytest.mark.slow
def test_teacher_is_an_argument_of_the_step_on_any_number_of_devices(teacher):
    """Another teacher needs no other program, and gives another loss; the state holds none."""
    experiment = experiment_of(CONSISTENT | {"loss.teacher": teacher})
    found = load_teacher(experiment)
    scaled = jax.tree.map(lambda leaf: 1.5 * leaf, found.network.args[0])
    other = dataclasses.replace(found, network=jax.tree_util.Partial(found.network.func, scaled))
    losses = {}
    for parallel in (experiment.parallel, one_device()):
        trainer = dataclasses.replace(experiment.trainer, parallel=parallel)
        step, key = trainer.compiled_step(), base_key(0, "training")
        batch = parallel.put_batch(np.zeros((16, 8, 8, 1), np.float32))
        for name, each in (("found", found), ("other", other)):
            each = jax.device_put(each, parallel.replicated)
            _, scalars = step(key, trainer.init_state(key), batch, None, each)
            losses.setdefault(name, []).append(float(scalars["loss"]))
        assert step._cache_size() == 1
    for values in losses.values():
        assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert losses["found"][0] != losses["other"][0]


@pytest.mark.slow
def test_several_steps_per_call_and_parts_of_a_batch_have_the_teacher_too(teacher):
    fields = STUDENT | {"loss.teacher": teacher}
    found, losses = load_teacher(experiment_of(fields)), []
    for changes in ({}, {"training.accumulate": 2}):
        trainer = experiment_of(fields | changes).trainer
        key, batch = base_key(0, "training"), np.ones((2, 16, 8, 8, 1), np.float32)
        state, first = trainer.compiled_step()(key, trainer.init_state(key), batch[0], None, found)
        _, second = trainer.compiled_step()(key, state, batch[1], None, found)
        _, both = trainer.compiled_steps()(key, trainer.init_state(key), batch, None, found)
        single = [float(first["loss"]), float(second["loss"])]
        np.testing.assert_allclose(both["loss"], single, rtol=1e-5)
        losses.append(single)
    np.testing.assert_allclose(*losses, rtol=1e-5)


def one_device():
    four = DataParallel.over_all_devices()
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("data",), axis_types=four.mesh.axis_types)
    return DataParallel(mesh)


@pytest.mark.slow
def test_teacher_that_does_not_fit_is_one_line(teacher, tmp_path):
    student = trained(STUDENT | {"loss.teacher": teacher}, tmp_path / "student")
    for fields, message in (
        (CONSISTENT | {"loss.teacher": "runs/missing"}, "'runs/missing': there is no run in"),
        (CONSISTENT | {"loss.teacher": f"{teacher}:7"}, r"teacher:7'.*7"),
        (
            CONSISTENT | {"loss.teacher": teacher, "sde.name": "cosine"},
            r"has another sde than this run: .*name=vp, not .*name=cosine.*; give the same",
        ),
        (
            CONSISTENT | {"loss.teacher": teacher, "data.centered": False},
            "has another range than this run: .*high=1.0",
        ),
        (
            CONSISTENT | {"loss.teacher": student},
            r"was trained by config\.loss\.name='progressive_distillation', which gives no scores",
        ),
        (
            STUDENT | {"loss.teacher": student},
            r"student_steps=4 must be half the teacher's.* samples in 4; give "
            r"config\.loss\.student_steps=2",
        ),
        (
            STUDENT | {"loss.teacher": student, "loss.student_steps": 2, "loss.grid": "log_snr"},
            r"config\.loss\.grid='log_snr' must be that of the teacher; give .*grid=uniform",
        ),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            load_teacher(experiment_of(fields))
        assert str(caught.value).startswith("config.loss.")
        assert "\n" not in str(caught.value)
    load_teacher(experiment_of(STUDENT | {"loss.teacher": student, "loss.student_steps": 2}))


@pytest.mark.slow
def test_plan_of_a_distillation_needs_no_teacher(teacher):
    text = describe(experiment_of(STUDENT | {"loss.teacher": "runs/missing"}))
    assert "ddim: 4 network evaluations per image" in text


@pytest.mark.slow
def test_objective_without_a_teacher_loads_none(teacher):
    assert load_teacher(experiment_of(BASE)) is None
