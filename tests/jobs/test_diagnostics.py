"""Measurements during training, against Gaussian data for which all of them have closed forms."""

import dataclasses
import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, configuration
from jax.tree_util import Partial

from denoising import Denoiser
from errors import ConfigError
from evaluation.features import diagnostics_extractor
from experiment.build import build
from jobs.diagnostics import DIAGNOSTICS, Diagnostics
from jobs.plan import describe
from jobs.train import train
from jobs.training_job import model_job
from jobs.workdir import Workdir
from metrics.features import PIXELS, THUMBNAILS
from training.checkpoints import Checkpoints
from training.objective import Objective
from training.step import TrainState

MEAN, STD = 0.1, 0.3


def optimal_eps(params, x, condition):
    """The noise of data N(MEAN, STD^2), for t given as 999 t of a VP process."""
    t = condition[:, None, None, None] / 999
    alpha = jnp.exp(-0.25 * t**2 * 19.9 - 0.05 * t)
    variance = alpha**2 * STD**2 + 1 - alpha**2
    return params * jnp.sqrt(1 - alpha**2) * (x - alpha * MEAN) / variance


def diagnostics_of(folder, fields=None, *, count=200):
    """Diagnostics of the optimal network for images of independent Gaussian pixels."""
    rng = np.random.default_rng(0)

    def images(number):
        values = MEAN + STD * rng.standard_normal((number, 4, 4, 1))
        return np.clip(np.floor((values + 1) * 128), 0, 255).astype(np.uint8)

    np.savez(folder / "images.npz", train=images(300), test=images(count))
    data = {"data.name": str(folder / "images.npz"), "data.image_size": 4}
    config = configuration(TINY | data | {"diagnostics.every": 5} | (fields or {}))
    config.denoiser.conditioning = "timestep_999"
    experiment = build(config)

    def denoiser(params, dropout):
        return Denoiser(sde=experiment.model.sde, network=Partial(optimal_eps, params))

    trainer = dataclasses.replace(
        experiment.trainer, denoiser=denoiser, init=lambda key: jnp.float32(0.5)
    )
    experiment = dataclasses.replace(experiment, trainer=trainer)
    return Diagnostics(experiment=experiment, extractor=PIXELS)


def with_loss(experiment, loss):
    trainer = dataclasses.replace(experiment.trainer, loss=loss)
    return dataclasses.replace(experiment, trainer=trainer)


def state(scale=1.0):
    return TrainState(jnp.int32(7), jnp.float32(scale), jnp.float32(scale), (), (), {})


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    diagnostics = diagnostics_of(tmp_path_factory.mktemp("gaussian"))
    return diagnostics, diagnostics.measure(state())


@pytest.mark.slow
def test_errors_at_noise_levels_are_those_of_the_optimal_network(measured):
    table = measured[1]["noise_levels"]
    assert len(table["test"]) == 16
    for name, blind in table["blind"].items():
        exact = 1 / (1 + np.exp(-float(name)) / STD**2)
        assert blind == pytest.approx(exact, rel=0.05), "estimated from 300 images"
        for split in ("train", "test"):
            # The levels have a width, over which the error curves.
            error = table[f"{split}_error"][name]
            assert table[split][name] == pytest.approx(exact, abs=4 * error + 0.15 * exact)
        gap = table["test"][name] - table["train"][name]
        assert table["gap"][name] == pytest.approx(gap, abs=1e-12)
    clean = max(table["test"], key=float)
    assert table["test_error"][clean] < 0.01, "the known noise is taken out"


@pytest.mark.slow
def test_bits_per_dim_are_those_of_the_density(measured):
    diagnostics, values = measured
    data = diagnostics.experiment.data
    x = data.scaler.forward((data.splits.test + np.float32(0.5)) / 256)
    nats = -0.5 * ((x - MEAN) / STD) ** 2 - np.log(STD * np.sqrt(2 * np.pi))
    exact = -(nats.mean() + np.log(2 / 256)) / np.log(2)
    assert values["bits_per_dim_error"] < 0.15
    assert values["bits_per_dim"] == pytest.approx(exact, abs=4 * values["bits_per_dim_error"])


@pytest.mark.slow
def test_samples_of_the_optimal_network_are_as_near_as_images(measured):
    values = measured[1]
    spread = 4 * values["frechet_error"]
    assert values["frechet"] == pytest.approx(values["frechet_real"], abs=spread + 0.02)


@pytest.mark.slow
def test_losses_are_means_of_their_groups_and_those_of_the_objective(measured):
    values = measured[1]
    for split in ("train", "test"):
        assert len(values[f"{split}_loss_groups"]) == 16
        mean = np.mean(values[f"{split}_loss_groups"])
        assert values[f"{split}_loss"] == pytest.approx(mean, rel=0.05), "groups of 12 or 13"
    t = (np.arange(2000) + 0.5) / 2000
    sigma2 = -np.expm1(-0.5 * t**2 * 19.9 - 0.1 * t)
    exact = np.mean((1 - sigma2) * STD**2 / ((1 - sigma2) * STD**2 + sigma2))
    assert values["test_loss"] == pytest.approx(exact, abs=4 * values["test_loss_error"])


@pytest.mark.slow
def test_the_same_state_has_the_same_numbers_and_another_has_others(measured):
    diagnostics, values = measured
    again = dataclasses.replace(diagnostics).measure(state())
    assert json.dumps(again) == json.dumps(values)
    other = diagnostics.measure(state(0.5))
    assert other["test_loss"] > values["test_loss"]
    assert other["frechet"] > values["frechet"]


def with_options(diagnostics, **options):
    experiment = diagnostics.experiment
    changed = dataclasses.replace(experiment.diagnostics, **options)
    experiment = dataclasses.replace(experiment, diagnostics=changed)
    return dataclasses.replace(diagnostics, experiment=experiment)


@pytest.mark.slow
def test_only_what_is_asked_for_is_measured(measured):
    moved = state()._replace(ema_params=jnp.float32(0.75), params=jnp.float32(1.0))
    found = with_options(measured[0], metrics=("weights",)).measure(moved)
    assert found == {"weight_norm": 1.0, "average_distance": 0.25}


class Other(Objective):
    """An objective that is no squared error of noise."""

    def draw(self, key, model, x0, context):
        return ()

    def evaluate(self, key, drawn, model, x0, context):
        return jnp.mean(x0**2, axis=(1, 2, 3)) * context.step


@pytest.mark.slow
def test_the_loss_of_any_objective_is_measured(measured):
    experiment = with_loss(measured[0].experiment, Other())
    diagnostics = dataclasses.replace(measured[0], experiment=experiment)
    found = with_options(diagnostics, metrics=("loss", "noise_levels")).measure(state())
    assert found["test_loss"] == pytest.approx(7 * (MEAN**2 + STD**2), rel=0.1)
    assert found["noise_levels"] == measured[1]["noise_levels"]


@pytest.mark.slow
def test_what_the_objective_does_not_allow_is_left_out(measured):
    experiment = measured[0].experiment
    for samplers, teacher, left in (
        (("consistency",), "", ("loss", "weights")),
        (("ddim",), "runs/a", ("weights",)),
    ):
        loss = Other()
        loss.samplers, loss.teacher = samplers, teacher
        other = with_loss(experiment, loss)
        assert dataclasses.replace(measured[0], experiment=other).metrics == left
    assert {*measured[0].metrics, "nats_per_dim"} == DIAGNOSTICS.keys()
    upsampler = dataclasses.replace(experiment.trainer, image=lambda x: x)
    other = dataclasses.replace(experiment, trainer=upsampler)
    assert "frechet" not in dataclasses.replace(measured[0], experiment=other).metrics


@pytest.mark.slow
def test_what_the_data_cannot_give_is_refused(measured, tmp_path):
    diagnostics = measured[0]
    diagnostics.check()
    # As many images as are wanted, or all that there are.
    for images, used in ((100, 100), (201, 200)):
        some = with_options(diagnostics, images=images)
        some.check()
        assert [len(chosen) for chosen in some.instruments.chosen.values()] == [used, used]
    with pytest.raises(ConfigError, match=r"'fid' is unknown; choose some of: loss, noise_levels"):
        with_options(diagnostics, metrics=("loss", "fid")).check()
    one = diagnostics_of(tmp_path, count=1)
    for check in (one.check, partial(describe, one.experiment)):  # training, and --mode=check
        with pytest.raises(ConfigError, match=r"1 test image.*set config\.diagnostics\.every=0"):
            check()


@pytest.mark.slow
def test_features_are_looked_up_by_name(measured, tmp_path):
    experiment = measured[0].experiment
    assert diagnostics_extractor(experiment, Workdir(tmp_path)) is THUMBNAILS
    for name, said in (("fid", r"features='fid' is unknown; choose one of: classifier, incep"),):
        other = with_options(measured[0], features=name).experiment
        with pytest.raises(ConfigError, match=rf"^config\.diagnostics\.{said}"):
            diagnostics_extractor(other, Workdir(tmp_path))


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("every", -1, "at least 0"),
        ("images", -1, "at least 0"),
        ("levels", 1, "at least 2"),
        ("samples", 4, "at least 5"),
        ("sampling_steps", 3, "at least 4"),
    ],
)
def test_numbers_out_of_range_are_refused(field, value, said):
    config = configuration(TINY | {f"diagnostics.{field}": value})
    with pytest.raises(ConfigError, match=rf"^config\.diagnostics\.{field}={value} must be {said}"):
        build(config)


def measurements(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("images_per_sec", None)
    return rows


@pytest.mark.slow
def test_killed_run_measures_and_says_what_the_run_that_never_stopped_does(tmp_path, capsys):
    """The network has one parameter, which it learns."""
    fields = {
        "training.steps": 12,
        "training.checkpoint_every": 5,
        "training.log_every": 4,
        "diagnostics.every": 3,
        "diagnostics.images": 16,
        "diagnostics.samples": 16,
    }
    diagnostics = diagnostics_of(tmp_path, fields)

    def trained(folder):
        assert train(model_job(diagnostics.experiment, diagnostics), Workdir(folder))
        return measurements(folder), capsys.readouterr().out.splitlines()[-1].split("; plots are")

    rows, said = trained(tmp_path / "whole")
    assert [row["step"] for row in rows if "test_loss" in row] == [3, 6, 9, 12]
    assert "test loss" in said[0]
    assert "noise levels" in said[0]
    assert said[1] == f" in {tmp_path / 'whole' / 'plots'}"
    plots = {file.name for file in (tmp_path / "whole/plots").iterdir()}
    assert plots == {"training.png", "noise_levels.png"}
    # Killed between the checkpoint at step 5 and that at step 10.
    killed = shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for step in (10, 12):
        shutil.rmtree(killed / "checkpoints" / str(step))
    again, now_said = trained(killed)
    assert again == rows
    assert now_said[0] == said[0]


@pytest.mark.slow
def test_measuring_does_not_change_training(tmp_path):
    fields = {"training.steps": 5, "diagnostics.images": 8, "diagnostics.samples": 5}
    diagnostics = diagnostics_of(tmp_path, fields)
    found = []
    for name, measured in (("with", diagnostics), ("without", None)):
        workdir = Workdir(tmp_path / name)
        train(model_job(diagnostics.experiment, measured), workdir)
        like = diagnostics.experiment.trainer.abstract_state()
        found.append(Checkpoints(workdir.checkpoints).restore(like).state)
    for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
        assert np.asarray(ours).tobytes() == np.asarray(theirs).tobytes()
