"""The log-density of an energy on the test rows, and its constant on the plane, in closed form."""

import json
import re

import numpy as np
import pytest
from analytic import gaussian
from command_line import TINY, configuration

from configs import energy_moons
from errors import ConfigError
from evaluation.evaluate import evaluate, extractors_of
from experiment.build import build
from experiment.sampler import Checkpoint
from jobs.densities import density_on_grid, draw_density
from jobs.workdir import Workdir

DATA = gaussian([0.3, -0.2], np.array([[1.0, 0.4], [0.4, 0.5]]))


def of_gaussian(**fields):
    """An experiment on moons, and a checkpoint whose energy is that of a Gaussian."""
    config = energy_moons.get_config()
    config.update_from_flattened_dict({"data.samples": 400, **fields})
    experiment = build(config)
    denoiser = DATA.energy_denoiser(experiment.model.sde)
    return experiment, Checkpoint(step=1, denoiser=denoiser)


@pytest.mark.slow
def test_result_is_the_density_of_the_gaussian(tmp_path):
    fields = {"likelihood.t_min": 0.1, "eval.metrics": ("log_density",)}
    experiment, checkpoint = of_gaussian(**fields)
    extractors = extractors_of(experiment, Workdir(tmp_path))
    printed = evaluate(experiment, checkpoint, Workdir(tmp_path), extractors)
    found = json.loads((tmp_path / "eval" / "1.json").read_text())["log_density"]
    data = experiment.data
    x = np.asarray(data.encode(data.splits.test[:]), np.float64)
    truth = DATA.marginal(experiment.model.sde, 0.1).log_prob(x)
    assert found["nats"] == pytest.approx(truth.mean() + data.log_det, abs=2e-3)
    assert found["mean"] - found["log_z"] == pytest.approx(truth.mean(), abs=2e-3)
    assert re.search(r"log-density, up to a constant +-?\d", printed)
    assert f"log-likelihood in nats         {found['nats']:.4f}" in printed
    with np.load(tmp_path / "eval" / "1.npz") as arrays:
        values = arrays["log_density"]
    np.testing.assert_allclose(values - values[0], truth - truth[0], rtol=0, atol=1e-4)


def test_density_on_a_grid_is_the_density_and_is_drawn():
    experiment, checkpoint = of_gaussian()
    points = DATA.sample(0, 500)
    found = density_on_grid(checkpoint.denoiser, points, 0.1, side=128)
    side = [np.linspace(low, high, 129) for low, high in zip(found.low, found.high, strict=True)]
    x, y = ((ends[1:] + ends[:-1]) / 2 for ends in side)
    places = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    truth = DATA.marginal(experiment.model.sde, 0.1).log_prob(places).reshape(128, 128)
    np.testing.assert_allclose(found.values, truth, rtol=0, atol=2e-3)
    picture = draw_density(experiment, checkpoint, points)
    panels = np.array_split(np.asarray(picture, int), 3, axis=1)
    assert all((panel.max(axis=-1) - panel.min(axis=-1) > 60).mean() > 0.003 for panel in panels)


def test_network_without_an_energy_is_refused(tmp_path):
    fields = TINY | {"eval.metrics": ("log_density", "loss"), "sampling.variant": None}
    experiment = build(configuration(fields))
    message = r"config\.eval\.metrics=\('log_density', 'loss'\): log_density needs a network that"
    with pytest.raises(ConfigError, match=f"{message} .* leave it out"):
        extractors_of(experiment, Workdir(tmp_path))
