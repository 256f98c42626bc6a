"""A new row of the smaller tables works where configurations name it; see test_new_rows.py.

Nothing is trained or compiled here: the network is a formula, or is only laid out.
"""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.tree_util import Partial
from test_new_rows import built

from data.generators import POINTS, SERIES, Drawn, Generator
from denoising import CONDITIONINGS, Conditioning
from experiment.kinds import KINDS
from jobs.diagnostics import DIAGNOSTICS, Diagnostics, check_metrics
from metrics.features import PIXELS
from models import CLASSIFIERS
from numerics.parameterizations import PARAMETERIZATIONS, Parameterization, Prediction
from objectives.times import TIMES, Uniform
from objectives.weights import WEIGHTS, Sigma2
from sampling import Step
from solvers.predictor_corrector import CORRECTORS, PREDICTORS
from training.step import TrainState


def test_parameterization_and_conditioning(monkeypatch):
    """The network's output is -eps, and its time input is 7 t."""
    row = Parameterization(predict=lambda x, a, s, h: Prediction((x + s * h) / a, -h))
    monkeypatch.setitem(PARAMETERIZATIONS, "dummy", row)
    monkeypatch.setitem(CONDITIONINGS, "dummy", Conditioning(lambda sde, t, n: 7 * t))
    experiment = built(denoiser={"parameterization": "dummy", "conditioning": "dummy"})
    formula = Partial(lambda x, cond: x + cond[:, None, None, None])
    denoiser = dataclasses.replace(experiment.model.denoiser({}), network=formula)
    found = denoiser.predict(jnp.ones((2, 8, 8, 1)), 0.5)
    np.testing.assert_allclose(found.eps, -4.5)


@dataclass(frozen=True, kw_only=True)
class Late(Uniform):
    t_min: float = 0.9


@dataclass(frozen=True, kw_only=True)
class Tripled(Sigma2):
    def __call__(self, sde, t):
        return 3 * super().__call__(sde, t)


def test_times_and_weight(monkeypatch):
    monkeypatch.setitem(TIMES, "dummy", Late)
    monkeypatch.setitem(WEIGHTS, "dummy", Tripled)
    experiment = built(times={"name": "dummy"}, weight={"name": "dummy"})
    assert experiment.config["times"]["t_min"] == 0.9
    loss, sde = experiment.trainer.loss, experiment.model.sde
    t = loss.times.draw(jax.random.key(0), 8, sde)
    assert t.min() >= 0.9
    np.testing.assert_array_equal(loss.weight(sde, t), 3)


class Judge(nn.Module):
    """A classifier of one layer."""

    num_classes: int = 10
    features: int = 4

    @staticmethod
    def validate(image_size, channels):
        pass

    @nn.compact
    def __call__(self, x, cond, *, train):
        hidden = nn.Dense(self.features)(x.reshape(len(x), -1)) + cond[:, None]
        return nn.Dense(self.num_classes)(hidden)


def test_classifier(monkeypatch):
    monkeypatch.setitem(CLASSIFIERS, "dummy", Judge)
    experiment = built(classifier={"name": "dummy", "features": 3})
    model = experiment.parts.classifier
    model.check(experiment.data)
    layout = jax.eval_shape(model.trainer.init, jax.random.key(0))
    sizes = sorted(leaf.size for leaf in jax.tree.leaves(layout))
    assert sizes == [3, 10, 30, 192]


@dataclass(frozen=True, kw_only=True)
class Still:
    """A step that goes nowhere."""

    churn: float = 1.0
    snr: float = 0.1
    evaluations = 5

    def step(self, keys, denoiser, state, t, s):
        return Step(state.x, state.x)


def test_predictor_and_corrector(monkeypatch):
    monkeypatch.setitem(PREDICTORS, "dummy", Still)
    monkeypatch.setitem(CORRECTORS, "dummy", Still)
    predicted = built(sampling={"predictor": "dummy", "corrector": "none", "churn": 0.5})
    assert predicted.sampler.solve.solver.predictor == Still(churn=0.5)
    corrected = built(sampling={"predictor": "none", "corrector": "dummy", "snr": 0.2})
    assert corrected.sampler.solve.solver.corrector == Still(snr=0.2)
    assert predicted.sampler.evaluations == corrected.sampler.evaluations == 4 * 5 + 1


@pytest.mark.parametrize(
    ("table", "name", "shape", "network"),
    [(POINTS, "points", (2,), "mlp"), (SERIES, "series", (8, 1), "unet1d")],
)
def test_generator(monkeypatch, table, name, shape, network):
    def draw(rng, count):
        return Drawn(np.full((count, *shape), 3.0) + rng.random((count, *shape)))

    monkeypatch.setitem(table, "dummy", Generator(draw=draw, shape=shape))
    data = {"name": f"{name}:dummy", "samples": 20}
    experiment = built(data=data, model={"name": network})
    splits = experiment.data.splits
    assert (experiment.data.kind, experiment.data.shape) == (KINDS[name], shape)
    assert (len(splits.train), len(splits.test)) == (18, 2)
    assert np.asarray(splits.train).min() >= 3


def test_kind(monkeypatch):
    """A row as for points, with a picture of its own."""
    picture = [np.zeros((2, 3, 3), np.uint8)]
    row = dataclasses.replace(KINDS["points"], one="address", pictures=lambda frames: picture)
    monkeypatch.setitem(KINDS, "points", row)
    experiment = built(data={"name": "points:moons", "samples": 20}, model={"name": "mlp"})
    assert experiment.data.kind.one == "address"
    assert experiment.data.pictures([np.zeros((4, 2))]) is picture


def test_diagnostic(monkeypatch):
    monkeypatch.setitem(DIAGNOSTICS, "dummy", lambda subject: {"dummy": int(subject.state.step)})
    experiment = built(diagnostics={"metrics": ("dummy",), "every": 5})
    check_metrics(experiment.diagnostics, experiment.data.kind)
    diagnostics = Diagnostics(experiment=experiment, extractor=PIXELS)
    assert diagnostics.metrics == ("dummy",)
    state = TrainState(jnp.int32(7), {}, {}, (), (), {})
    assert diagnostics.measure(state) == {"dummy": 7}
