"""The processes of points of the plane: a picture and an animation, or neither."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import bridge_points, vp_swiss_roll, vp_waves
from experiment.build import build
from experiment.sampler import Checkpoint
from jobs.processes import animate_processes, draw_processes


def untrained(config):
    """A small experiment, and a checkpoint of zeros."""
    config.model.features = 8
    config.data.samples = 50
    config.sampling.steps = 3
    experiment = build(config)
    params = experiment.trainer.abstract_state().params
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), params)
    return experiment, Checkpoint(step=1, denoiser=experiment.model.denoiser(zeros))


@pytest.mark.slow
def test_points_of_the_plane_have_a_picture_and_a_frame_per_step():
    experiment, checkpoint = untrained(vp_swiss_roll.get_config())
    assert draw_processes(experiment, checkpoint).shape == (660, 4 * 220, 3)
    frames = animate_processes(experiment, checkpoint, 40)
    assert [frame.shape for frame in frames] == [(300, 900, 3)] * 4
    assert len(animate_processes(experiment, checkpoint, 2)) == 2
    # The forward process starts as it is in the picture, and each frame is another.
    assert len({frame.tobytes() for frame in frames}) == 4
    assert all(np.ptp(frame[40:, 300 * k :][:, :300]) > 100 for frame in frames for k in range(3))


@pytest.mark.slow
@pytest.mark.parametrize("config", [vp_waves.get_config, bridge_points.get_config])
def test_series_and_paths_between_two_data_sets_have_none(config):
    experiment, checkpoint = untrained(config())
    assert draw_processes(experiment, checkpoint) is None
    assert animate_processes(experiment, checkpoint, 2) == []
