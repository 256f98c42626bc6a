"""Bits/dim of a model of gray levels that is known exactly, by each kind of dequantization."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, configuration
from jax.tree_util import Partial

from bounds.dequantization import Dequantizer
from denoising import Denoiser
from errors import ConfigError
from evaluation import evaluate as module
from experiment.build import build
from experiment.sampler import Checkpoint
from jobs.workdir import Workdir
from sde_lib import VPSDE

SDE = VPSDE()
T_MIN = 3e-3  # where sigma is a third of half a gray level of the digits
CENTERS = (2 * (np.arange(17) + 0.5) / 17 - 1).astype(np.float32)


def level_score(x, t):
    """The score of pixels that are independent, with all 17 gray levels equally likely."""
    alpha, sigma = SDE.alpha(t)[:, None, None, None, None], SDE.sigma(t)[:, None, None, None, None]
    distance = alpha * CENTERS[None, None, None, None] - x[..., None]
    weights = jax.nn.softmax(-(distance**2) / (2 * sigma**2), axis=-1)
    return jnp.sum(weights * distance / sigma**2, axis=-1)


def evaluated(folder, name, metrics, dequantizer=None):
    fields = TINY | {
        "data.dequantization": name,
        "likelihood.t_min": T_MIN,
        "likelihood.solver": "dopri5",  # at loose tolerances the more exact for so sharp a density
        "likelihood.rtol": 1e-3,
        "likelihood.atol": 1e-3,
        "continuous_bound.t_min": T_MIN,
        "continuous_bound.num_times": 8,
        "eval.metrics": metrics,
        "eval.batch_size": 100,
        "eval.dequantizations": 1,
    }
    experiment = build(configuration(fields))
    network = Partial(level_score)
    denoiser = Denoiser(sde=SDE, network=network, parameterization="score", conditioning="t")
    checkpoint = Checkpoint(step=1, denoiser=denoiser, dequantizer=dequantizer)
    text = module.evaluate(experiment, checkpoint, Workdir(folder), ())
    with np.load(folder / "eval" / "1.npz") as arrays:
        return json.loads((folder / "eval" / "1.json").read_text()), dict(arrays), text


@pytest.mark.slow
def test_truncated_normal_noise_finds_the_probability_of_the_levels(tmp_path):
    """Each has probability 1 / 17. The trace of a diagonal Jacobian is exact for Rademacher's."""
    metrics = ("bits_per_dim", "continuous_bound")
    results, arrays, text = evaluated(tmp_path, "truncated_normal", metrics)
    truth, found = math.log2(17), results["bits_per_dim"]
    # tau = 3 leaves the tails of the noise out: log2(erf(3 / sqrt 2)) is 0.004.
    assert truth < found["mean"] < truth + 0.006
    parts = found["prior"] + found["divergence"] + found["dequantization"]
    assert parts == pytest.approx(found["mean"], abs=1e-5)
    assert found["truncation"] is None
    np.testing.assert_allclose(arrays["dequantization"].mean(), found["dequantization"], rtol=1e-6)
    assert arrays["dequantization"].shape == (1, 297)
    # The Gaussian's entropy in gray levels, log2(s sqrt(2 pi e)) for s = 1 / 6.
    entropy = math.log2(math.sqrt(2 * math.pi * math.e) / 6)
    assert found["dequantization"] == pytest.approx(-entropy, abs=0.05)
    # The bound of the levels themselves has no noise but the process's, and is tight as well.
    bound = results["continuous_bound"]
    assert bound["dequantization"] == 0
    assert bound["mean"] == pytest.approx(truth + 0.004, abs=0.05)
    assert found["tau"] == pytest.approx(3, abs=0.02)
    assert "the sum of" in text
    assert "half a gray level" in text
    assert "truncation" not in text


@pytest.mark.slow
def test_noise_of_a_dequantizer_counts_with_its_density(tmp_path):
    """A flow that squeezes uniform noise to the middle half of the bin has log q = D log 2."""

    def squeeze(images, noise):
        return 0.25 + noise / 2, jnp.full(len(images), -64 * math.log(2))

    dequantizer = Dequantizer(network=Partial(squeeze), bin_width=2 / 17)
    results, arrays, _ = evaluated(tmp_path, "variational", ("bits_per_dim",), dequantizer)
    np.testing.assert_allclose(arrays["dequantization"], 1, rtol=1e-6)
    found = results["bits_per_dim"]
    assert found["dequantization"] == pytest.approx(1)
    # In gray levels: 1 - E log2 N(u; 0, s^2) with E u^2 = 1 / 48, s = 1 / 6.
    square = 36 / 48 / 2 * math.log2(math.e)
    expected = math.log2(17) + 1 + math.log2(math.sqrt(2 * math.pi) / 6) + square
    assert found["mean"] == pytest.approx(expected, abs=0.01)
    assert results["protocol"]["dequantizer"]["digest"] is not None


@pytest.mark.slow
def test_missing_dequantizer_is_refused_with_the_remedy(tmp_path):
    def experiment(**fields):
        return build(configuration(TINY | {"data.dequantization": "variational", **fields}))

    workdir = Workdir(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"no dequantizer in .*; run --mode=train_dequantizer f"):
        module.dequantizer_of(experiment(), workdir)
    few = {"eval.metrics": ("loss", "frechet")}
    assert module.dequantizer_of(experiment(**few), workdir) is None, "nothing needs it"
    with pytest.raises(ConfigError, match=r"config\.data\.dequantization='normal' is unknown; ch"):
        experiment(**{"data.dequantization": "normal"})
