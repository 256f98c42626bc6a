"""Maximum likelihood of energies: the fitted Gaussian is known, chains persist and resume."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh

from configs import energy_moons
from denoising import Denoiser
from errors import ConfigError
from experiment.build import build
from objectives.maximum_likelihood import MaximumLikelihood
from sde_lib import VPSDE
from training.averages import MovingAverage
from training.objective import Context
from training.optimizers import Adam, Optimizer
from training.parallel import DataParallel
from training.schedules import Constant
from training.step import Trainer

KEY = jax.random.key(0)
FOUR = DataParallel.over_all_devices()
ONE = DataParallel(Mesh(jax.devices()[:1], ("data",), axis_types=(AxisType.Auto,)))
SDE = VPSDE()
T_MIN = 0.1
MEAN, VARIANCE = 0.5, 0.25


def gaussian(params, dropout=None):
    """N(mean, exp(-log_precision)) at any noise level."""

    def energy(x, t):
        return -0.5 * jnp.exp(params["log_precision"]) * jnp.sum((x - params["mean"]) ** 2, axis=1)

    def network(x, t):
        return jax.grad(lambda x: jnp.sum(energy(x, t)))(x)

    return Denoiser(
        sde=SDE, network=network, energy=energy, parameterization="score", conditioning="t"
    )


def trainer_of(loss, parallel=ONE):
    return Trainer(
        init=lambda key: {"mean": jnp.zeros(()), "log_precision": jnp.zeros(())},
        denoiser=gaussian,
        loss=loss,
        optimizer=Optimizer(rule=Adam(), learning_rate=Constant(lr=0.02, warmup=0)),
        average=MovingAverage(rate=0.98),
        parallel=parallel,
    )


@pytest.mark.slow
def test_gaussian_is_fitted_by_its_samples():
    """The law of the chains, V / (1 - h / 2 V) wide, becomes that of the noised data."""
    loss = MaximumLikelihood(row_shape=(1,), t_min=T_MIN, chains=512, chain_steps=10)
    trainer = trainer_of(loss)
    rows = np.random.default_rng(0).normal(MEAN, np.sqrt(VARIANCE), (400, 512, 1))
    state = trainer.init_state(KEY)
    state, scalars = trainer.compiled_steps()(KEY, state, jnp.asarray(rows, jnp.float32))
    alpha, sigma = (float(f(jnp.asarray(T_MIN))) for f in (SDE.alpha, SDE.sigma))
    variance, h = alpha**2 * VARIANCE + sigma**2, 0.5 * sigma**2
    expected = (variance + np.sqrt(variance**2 - 2 * variance * h)) / 2
    found = np.exp(-float(state.ema_params["log_precision"]))
    assert abs(found / expected - 1) < 0.04, (found, expected, variance)
    assert abs(expected / variance - 1) > 0.08, "the bias of the chains is too small to tell"
    assert abs(float(state.ema_params["mean"]) - alpha * MEAN) < 0.02
    assert abs(float(np.mean(scalars["loss"][200:]))) < 0.02
    chains = np.asarray(state.objective.x)
    assert abs(chains.var() / variance - 1) < 5 * np.sqrt(2 / 512) + 0.02


@pytest.mark.slow
def test_chains_are_part_of_the_state_on_any_number_of_devices():
    """Half of the steps, then the others from a copy, are all steps; the chains come in turn."""
    loss = MaximumLikelihood(row_shape=(1,), t_min=T_MIN, chains=20, chain_steps=2, restart=0.1)
    rows = np.random.default_rng(0).normal(size=(4, 8, 1)).astype(np.float32)
    ends = []
    for parallel in (ONE, FOUR):
        trainer = trainer_of(loss, parallel)
        step, state = trainer.compiled_step(), trainer.init_state(KEY)
        started, states = [], []
        for batch in rows:
            state, _ = step(KEY, state, parallel.put_batch(batch))
            started.append((int(state.objective.started), int(state.objective.next)))
            states.append(jax.tree.map(np.asarray, state))
        assert started == [(8, 8), (16, 16), (20, 4), (20, 12)]
        moved = np.asarray(states[2].objective.x != states[1].objective.x)[:, 0]
        np.testing.assert_array_equal(np.flatnonzero(moved), [0, 1, 2, 3, 16, 17, 18, 19])
        resumed = jax.device_put(states[1], jax.tree.map(lambda leaf: leaf.sharding, state))
        for batch in rows[2:]:
            resumed, _ = step(KEY, resumed, parallel.put_batch(batch))
        jax.tree.map(np.testing.assert_array_equal, resumed, state)
        ends.append(states[-1])
    one, four = ends
    np.testing.assert_allclose(one.objective.x, four.objective.x, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_evaluation_keeps_no_chains():
    loss = MaximumLikelihood(row_shape=(1,), t_min=T_MIN, chain_steps=1)
    params = {"mean": jnp.zeros(()), "log_precision": jnp.zeros(())}
    found = loss(KEY, gaussian(params), jnp.zeros((5, 1)), Context())
    assert found.state == ()
    assert np.all(np.isfinite(found.values))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"denoiser.energy": False},
            "config.loss.name='maximum_likelihood' trains the energy of a network; set "
            "config.denoiser.energy=True, or choose config.loss.name=denoising",
        ),
        ({"model.num_classes": 2}, "config.loss.name='maximum_likelihood' keeps chains without cl"),
        (
            {"loss.chains": 100},
            "config.loss.chains=100 is less than config.training.batch_size=256, which takes one "
            "per row; give as many chains or more",
        ),
        (
            {"likelihood.t_min": 0.2},
            "config.likelihood.t_min=0.2 is another time than config.loss.t_min=0.03, whose "
            "density is trained; leave it out",
        ),
        (
            {"sampling.name": "unipc"},
            "config.sampling.name='unipc' needs scores at all times, which "
            "config.loss.name='maximum_likelihood' does not train; choose langevin or mala",
        ),
        ({"loss.chain_step_size": 2.0}, "config.loss.chain_step_size=2.0 must lie in (0, 2)"),
        ({"times.t_min": 0.1}, "config.times.t_min is not used with config.loss.name='maximum_l"),
    ],
)
@pytest.mark.slow
def test_what_cannot_be_trained_is_refused(fields, message):
    config = energy_moons.get_config("maximum_likelihood")
    config.update_from_flattened_dict(fields)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        build(config, overrides=frozenset(fields))


def test_samplers_take_the_time_that_is_trained():
    config = energy_moons.get_config("maximum_likelihood")
    config.loss.t_min = 0.05
    experiment = build(config)
    assert experiment.sampler.solve.t_min == experiment.likelihood.options.t_min == 0.05
