"""The variance head of an experiment: its settings, its training, and who needs it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, configuration

from errors import ConfigError
from experiment.build import build
from experiment.sampler import Checkpoint
from jobs.restore import load_variance_head
from jobs.training_job import variance_head_job
from jobs.workdir import Workdir


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        (
            "target",
            "noise",
            r"config\.variance_head\.target='noise' is unknown; choose one of: res",
        ),
        ("features", 0, r"config\.variance_head\.features=0 must be at least 1"),
        ("t_min", 0.0, r"config\.variance_head\.t_min=0\.0 must lie in \(0, 1\)"),
        ("lr", 0.0, r"config\.variance_head\.lr=0\.0 must be above 0"),
    ],
)
def test_value_out_of_range_is_refused(field, value, message):
    with pytest.raises(ConfigError, match=message):
        build(configuration(TINY | {f"variance_head.{field}": value}))


@pytest.mark.slow
@pytest.mark.parametrize("classes", [0, 10])
def test_job_trains_a_network_of_its_own_and_leaves_the_model_alone(classes):
    fields = {"model.num_classes": classes, "variance_head.features": 16}
    experiment = build(configuration(TINY | fields | {"variance_head.batch_size": 8}))
    params = experiment.trainer.abstract_state().params
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), params)
    denoiser = experiment.model.denoiser(zeros)
    job = variance_head_job(experiment, denoiser)
    batches, state = job.batches(), job.trainer.abstract_state()
    assert (experiment.model.network.features, experiment.parts.variance_head.network.features) == (
        8,
        16,
    )
    labels = jnp.asarray(batches.labels_at(0)) if classes else None
    new, scalars = jax.eval_shape(
        job.trainer.step,
        jax.random.key(0),
        state,
        jnp.asarray(batches.at(0)),
        labels,
        job.load_teacher(),
    )
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert scalars["loss"].shape == ()
    # A head that starts as zero predicts alpha^2 / (alpha^2 + sigma^2), for each pixel.
    started = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state.params)
    checkpoint = Checkpoint(
        step=1, denoiser=denoiser, variance_head=experiment.parts.variance_head.head(started)
    )
    uncertain = checkpoint.with_uncertainty("variance_head", np.ones(2), (-1.0, 1.0))
    x, t = jnp.ones((2, 8, 8, 1)), jnp.array([0.6, 0.9])
    u = uncertain.uncertainty(uncertain.sde, x, t, x)
    expected = jax.nn.sigmoid(uncertain.sde.log_snr(t))
    expected = jnp.minimum(expected, jnp.exp(uncertain.sde.log_snr(t)))
    np.testing.assert_allclose(u, jnp.broadcast_to(expected[:, None, None, None], x.shape), 1e-5)


@pytest.mark.slow
def test_missing_head_is_refused_with_the_remedy(tmp_path):
    analytic = {"sampling.name": "analytic", "sampling.variance": "diagonal"}
    ancestral = {"sampling.predictor": "ancestral", "sampling.variance": "diagonal"}
    for fields, field in (
        (analytic, "sampling"),
        (ancestral, "sampling"),
        ({"discrete_bound.variance": "diagonal"}, "discrete_bound"),
    ):
        experiment = build(configuration(TINY | fields))
        needs = experiment.sampler.needs | experiment.likelihood.discrete_bound.options.needs
        assert needs == {"variance_head"}
        message = rf"config\.{field}\.variance=diagonal: there is no .*; run --mode=train_variance "
        with pytest.raises(ConfigError, match=message):
            load_variance_head(experiment, Workdir(tmp_path), "10")
    optimal = TINY | analytic | {"sampling.timestep_choice": "optimal"}
    assert build(configuration(optimal)).sampler.needs == {"variance_head", "moments"}
