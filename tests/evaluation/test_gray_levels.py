"""A network of gray levels that was never trained holds them all for equally likely.

It is then the exact denoiser of independent pixels, whose bits/dim are known: log2 of the levels.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, configuration
from flax import linen as nn

from bounds.continuous import ContinuousBoundOptions, continuous_bound
from experiment.build import build
from jobs.diagnostics import Diagnostics
from likelihood import LikelihoodOptions, log_prob
from metrics.features import PIXELS
from models import NETWORKS
from numerics.ode import ODEOptions

BITS = math.log2(17)
FIELDS = {
    "model.name": "small",
    "denoiser.parameterization": "levels",
    "denoiser.conditioning": "log_snr",
    "data.dequantization": "truncated_normal",
    "sde.name": "learned",
    "sde.log_snr_max": 8.0,
    "loss.name": "learned_schedule",
    "diagnostics.metrics": ("loss", "bits_per_dim"),
    "diagnostics.every": 5,
    "diagnostics.images": 64,
}


class Small(nn.Module):
    """Of two layers, the last of which starts at almost zero, as those of all networks do."""

    features: int = 8
    out_channels: int | None = None

    @staticmethod
    def validate(image_size, channels):
        pass

    @nn.compact
    def __call__(self, x, cond, *, train):
        hidden = nn.gelu(nn.Dense(self.features)(x) + cond[:, None, None, None])
        return nn.Dense(self.out_channels, kernel_init=nn.initializers.normal(1e-3))(hidden)


@pytest.fixture(scope="module")
def untrained():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(NETWORKS, "small", Small)
        experiment = build(configuration(TINY | FIELDS))
        state = experiment.trainer.init_state(jax.random.key(0))
        yield experiment, state, experiment.model.denoiser(state.ema_params)


def bits(nats, experiment):
    return float(np.mean(nats)) / (experiment.data.size * math.log(2))


@pytest.mark.slow
def test_the_bound_is_tight(untrained):
    experiment, _, denoiser = untrained
    data = experiment.data
    x0 = data.noiseless(data.splits.test, jnp.arange(64))
    options = ContinuousBoundOptions(num_times=64)
    found = continuous_bound(
        jax.random.key(1), denoiser, x0, options=options, pixel_levels=data.pixel_levels
    )
    assert bits(found.total, experiment) == pytest.approx(BITS, abs=0.03)


@pytest.mark.slow
def test_the_ode_gives_the_same(untrained):
    experiment, _, denoiser = untrained
    data, t_min = experiment.data, 1e-5
    t = jnp.float32(t_min)
    alpha, sigma = float(denoiser.sde.alpha(t)), float(denoiser.sde.sigma(t))
    indices = jnp.arange(16)
    given = data.dequantized(data.splits.test, indices, seed=0, draw=0, alpha=alpha, sigma=sigma)
    found = log_prob(
        jax.random.key(1),
        denoiser,
        given.x,
        options=LikelihoodOptions(trace="exact", t_min=t_min),
        ode=ODEOptions(solver="adams", rtol=1e-4, atol=1e-4, max_steps=4096),
    )
    nats = given.log_q - found.nats - data.log_det
    assert bits(nats, experiment) == pytest.approx(BITS, abs=0.03)


@pytest.mark.slow
def test_so_do_the_diagnostics_of_training(untrained):
    experiment, state, _ = untrained
    found = Diagnostics(experiment=experiment, extractor=PIXELS).measure(state)
    assert found["bits_per_dim"] == pytest.approx(BITS, abs=4 * found["bits_per_dim_error"] + 0.02)
    assert found["bits_per_dim_error"] < 0.1
    assert found["test_loss"] == pytest.approx(BITS, abs=4 * found["test_loss_error"])
