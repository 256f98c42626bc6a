"""The dequantizer of an experiment: its settings, its training state, and what it is trained on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, configuration

from errors import ConfigError
from experiment.build import build
from jobs.training_job import dequantizer_job


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("couplings", 1, r"config\.dequantizer\.couplings=1; valid is an integer, 2 or more"),
        ("features", 0, r"config\.dequantizer\.features=0; valid is an integer, 1 or more"),
        ("t_min", 0.0, r"config\.dequantizer\.t_min=0\.0 must lie in \(0, 1\)"),
        ("steps", 0, r"config\.dequantizer\.steps=0 must be at least 1"),
        ("lr", 0.0, r"config\.dequantizer\.lr=0\.0 must be above 0"),
    ],
)
def test_value_out_of_range_is_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        build(configuration(TINY | {f"dequantizer.{field}": value}))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 10])
def test_job_trains_on_bin_centers_and_leaves_the_model_alone(classes):
    fields = {"model.num_classes": classes, "dequantizer.features": 4, "dequantizer.batch_size": 8}
    experiment = build(configuration(TINY | fields))
    params = experiment.trainer.abstract_state().params
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    job = dequantizer_job(experiment, experiment.model.denoiser(zeros))
    batches = job.batches()
    x = (batches.at(0) + 1) / 2 * 17 - 0.5
    np.testing.assert_allclose(x, np.rint(x), atol=1e-5)
    labels = jnp.asarray(batches.labels_at(0)) if classes else None
    denoiser = job.load_teacher()
    state = job.trainer.abstract_state()
    assert {name.split("_")[0] for name in state.params} == {"conv"}, "not the model's"
    new, scalars = jax.eval_shape(
        job.trainer.step, jax.random.key(0), state, jnp.asarray(batches.at(0)), labels, denoiser
    )
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert scalars["loss"].shape == ()
