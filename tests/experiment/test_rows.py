"""Points and series in an experiment: densities in their own units, options, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import Mixture

from configs import vp_digits, vp_swiss_roll, vp_waves
from errors import ConfigError
from evaluation.metrics import check_options
from experiment.build import build
from jobs.diagnostics import check_metrics
from likelihood import LikelihoodOptions, log_prob
from numerics.ode import ODEOptions
from sde_lib import VPSDE

SMALL = {"model.features": 8, "model.depth": 1, "data.samples": 100, "training.batch_size": 8}


def built(fields=SMALL, *, config=vp_swiss_roll, overrides=()):
    made = config.get_config()
    for name, value in fields.items():
        section, field = name.split(".")
        made[section][field] = value
    return build(made, overrides=overrides)


@pytest.mark.slow
def test_the_likelihood_of_a_mixture_is_its_closed_form_in_the_units_of_the_data():
    weights = np.array([0.3, 0.7])
    means = np.array([[10.0, -3.0], [14.0, -2.0]])
    covariances = np.array([[[2.0, 0.1], [0.1, 0.02]], [[0.5, 0.0], [0.0, 0.05]]])
    truth = Mixture(weights, means, covariances)
    mean, std = (12.0, -2.5), (2.5, 0.4)
    data = built(SMALL | {"data.mean": mean, "data.std": std}).data
    scale = np.diag(1 / np.array(std))
    seen = Mixture(weights, (means - mean) @ scale, scale @ covariances @ scale)
    rows = truth.sample(0, 8)
    with jax.enable_x64(True):
        sde = VPSDE(beta_max=60.0)  # p_1 is the prior
        x = jnp.asarray(data.scaler.forward(rows))
        options = LikelihoodOptions(trace="exact", t_min=1e-6)
        ode = ODEOptions(rtol=1e-7, atol=1e-7)
        found = log_prob(jax.random.key(0), seen.denoiser(sde), x, options=options, ode=ode)
    nats = np.asarray(found.nats) + data.log_det
    np.testing.assert_allclose(nats, truth.log_prob(rows), atol=2e-4)
    unit = data.kind.unit
    assert unit.name == "nats/dim"
    per_dim = unit.per_dim(np.asarray(found.nats), log_det=data.log_det, dims=data.size)
    np.testing.assert_allclose(per_dim, -truth.log_prob(rows) / 2, atol=1e-4)


def test_samples_are_in_the_units_of_the_data_and_encode_inverts_decode():
    data = built(SMALL | {"data.mean": (5.0, 0.0), "data.std": (2.0, 1.0)}).data
    x = np.array([[0.0, 0.0], [1.0, -1.0]], np.float32)
    rows = data.decode(x)
    np.testing.assert_allclose(rows, [[5, 0], [7, -1]])
    np.testing.assert_allclose(data.encode(rows), x)
    assert rows.dtype == np.float32


def test_what_is_recorded_opens_a_run_without_its_data(tmp_path):
    path = tmp_path / "rows.npy"
    np.save(path, np.random.default_rng(0).normal([3, 1, 4], 2, (50, 3)))
    first = built(SMALL | {"data.name": str(path)})
    recorded = first.config["data"]
    assert (recorded["kind"], recorded["shape"]) == ("points", (3,))
    assert recorded["image_size"] is None
    path.unlink()
    again = build(first.config)
    assert again.data.shape == (3,)
    assert again.data.scaler == first.data.scaler


def test_batches_have_mean_0_and_deviation_1():
    data = built(SMALL | {"data.name": "series:waves", "model.name": "mlp"}).data
    batch = data.training_batches(90, 0, labels=False).at(0)
    assert batch.shape == (90, 32, 1)
    assert abs(batch.mean()) < 1e-4
    assert batch.std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(data.variances(100), batch.reshape(90, -1).var(axis=0), rtol=1e-4)


@pytest.mark.parametrize("config", [vp_swiss_roll, vp_waves])
def test_measurements_are_those_of_the_kind(config):
    experiment = built({"data.samples": 100, "model.features": 8}, config=config)
    assert "nats_per_dim" in experiment.evaluation.metrics
    assert "nats_per_dim" in experiment.diagnostics.metrics
    assert experiment.evaluation.features == ("raw",)


def test_images_keep_their_measurements():
    experiment = built({"model.features": 8}, config=vp_digits)
    assert experiment.evaluation.metrics == ("loss", "bits_per_dim", "frechet")
    assert experiment.evaluation.features == ("pixels",)
    assert experiment.diagnostics.features == "thumbnails"
    assert experiment.config["data"]["kind"] == "images"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data.name": "points:spiral"}, "'points:spiral' is unknown; choose one of: points:check"),
        ({"data.random_flip": True}, "random_flip=True is not used with name='points:swiss_roll'"),
        ({"data.resize": "crop"}, "resize='crop' is not used with name='points:swiss_roll'"),
        ({"data.dequantization": "none"}, "dequantization='none' is not used with name='points"),
        ({"model.name": "ncsnpp"}, "'ncsnpp' is a network for images, and the data are points; ch"),
        ({"model.name": "unet1d"}, "'unet1d' is a network for series, and the data are points; ch"),
        ({"task.name": "inpaint", "task.input": "a.png", "task.mask": "left"}, "is for images"),
        ({"sampling.clip": "range"}, r"sampling.clip='range' is for images.*leave it out"),
        ({"augmentation.probability": 0.1}, "probability=0.1 is for images.*set it to 0"),
        ({"loss.name": "vlb"}, "a bound on gray levels, is for images.*choose denoising"),
        ({"data.kind": "series"}, "kind='series' does not fit name='points:swiss_roll'"),
        ({"data.kind": "text"}, "kind='text' is unknown; choose one of: images, points, series"),
        ({"data.shape": (3,)}, r"has rows of shape \(2,\), but config.data.shape=\(3,\)"),
        ({"data.shape": (3, 1)}, r"shape=\(3, 1\) is no shape of points"),
        ({"data.mean": (0.0,), "data.std": (1.0,)}, "mean and std have length 1, and name="),
        ({"data.samples": 1}, "samples=1 must be at least 20"),
        ({"data.name": "digits"}, "network for series, and the data are images"),
    ],
)
def test_what_does_not_suit_points_is_refused_when_the_experiment_is_built(fields, message):
    if "digits" in fields.values():
        fields = fields | {"model.name": "unet1d"}
    with pytest.raises(ConfigError, match=message) as error:
        built(SMALL | fields, overrides=fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eval.features": ("inception",)}, "'inception' is not for points; choose some of: cl"),
        ({"eval.metrics": ("bits_per_dim",)}, "bits_per_dim is not for points; choose some of: l"),
        ({"eval.metrics": ("loss", "discrete_bound")}, "discrete_bound is not for points"),
    ],
)
def test_metrics_of_images_are_refused(fields, message):
    experiment = built(SMALL | fields)
    with pytest.raises(ConfigError, match=message):
        check_options(experiment.evaluation, experiment.data.kind)


def test_measurements_of_images_are_refused_during_training():
    experiment = built(SMALL | {"diagnostics.metrics": ("bits_per_dim",)})
    with pytest.raises(ConfigError, match="bits_per_dim is not for points; give nats_per_dim"):
        check_metrics(experiment.diagnostics, experiment.data.kind)
