"""The bound of the original variational diffusion models on the same numbers.

tests/fixtures/vdm_losses.npz has what google-research/vdm, `VDM.__call__`, computed in double
precision for random images (NHWC), times and noises, with `learnable_nnet` schedules of 8 features
and, in place of its score model, the network below: the bound of each image in bits/dim, and the
gradients of their sum by the network's kernel, by the schedule's bias, and by a common factor of
the kernels that make the schedule (l1 and l3). Both of the latter move the ends of the schedule
alone, which are trained by the bound; what lies between is trained otherwise here.
"""

from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial
from networks import quick_jit

from denoising import Denoiser
from losses import LearnedSchedule, Noise
from numerics.pixel_levels import PixelLevels
from objectives.times import Uniform
from sde_lib import LearnedVPSDE
from training.objective import FIRST

GIVEN = dict(np.load(Path(__file__).parent.parent / "fixtures" / "vdm_losses.npz"))
GRAY_LEVELS = 16
LEVELS = PixelLevels(gray_levels=GRAY_LEVELS, low=1 / GRAY_LEVELS - 1, high=1 - 1 / GRAY_LEVELS)


def network(kernel, x, log_snr):
    gain = 1 - 0.1 * log_snr[:, None, None, None]
    return jnp.sin(x @ kernel) * gain + 0.5 * x


def schedule():
    """The ends of the log-SNR, and the network between them, of the recorded schedule."""
    slope, bias, offset = GIVEN["l1_kernel"][0, 0], GIVEN["l1_bias"][0], GIVEN["l2_bias"]
    steepness, height = 2 * np.abs(GIVEN["l2_kernel"][0]), np.abs(GIVEN["l3_kernel"][:, 0])
    height = 2 * height / len(height)
    interior = {
        "height": height / slope,
        "steepness": steepness,
        "center": 0.5 - offset / steepness,
    }
    start, end = (
        bias + slope * t + height @ (1 / (1 + np.exp(-steepness * (t - interior["center"]))) - 0.5)
        for t in (0, 1)
    )
    return {"log_snr_max": -start, "log_snr_min": -end, "interior": interior}


@pytest.mark.slow
def test_bound_and_its_gradients_are_the_original_ones(x64):
    ends, noise = schedule(), jnp.asarray(GIVEN["decoder_noise"])
    objective = LearnedSchedule(times=Uniform(t_min=1e-12), pixel_levels=LEVELS)
    drawn = Noise(jnp.asarray(GIVEN["times"]), jnp.asarray(GIVEN["noise"]))
    x0 = jnp.asarray((2 * GIVEN["images"].astype(float) + 1) / GRAY_LEVELS - 1)

    def bound(parameters, kernel):
        model = Denoiser(
            sde=LearnedVPSDE(**parameters),
            network=Partial(network, kernel),
            parameterization="eps",
            conditioning="log_snr",
        )
        with mock.patch.object(jax.random, "normal", return_value=noise):  # the decoder's
            values = objective.evaluate(jax.random.key(0), drawn, model, x0, FIRST)
        return jnp.sum(values), values

    at = jax.tree.map(jnp.asarray, (ends, GIVEN["kernel"]))
    gradients, values = quick_jit(jax.grad(bound, argnums=(0, 1), has_aux=True))(*at)
    np.testing.assert_allclose(values, GIVEN["values"], rtol=1e-9)
    np.testing.assert_allclose(gradients[1], GIVEN["kernel_gradient"], rtol=1e-9)
    by_start, by_end = -gradients[0]["log_snr_max"], -gradients[0]["log_snr_min"]
    np.testing.assert_allclose(by_start + by_end, GIVEN["bias_gradient"][0], rtol=1e-8)
    from_bias = [-ends[name] - GIVEN["l1_bias"][0] for name in ("log_snr_max", "log_snr_min")]
    by_scale = from_bias[0] * by_start + from_bias[1] * by_end
    np.testing.assert_allclose(by_scale, GIVEN["scale_gradient"], rtol=1e-8)
