"""A new row of a table works end to end, and nothing else is changed.

Each test adds a row and does what a user would do with it.
"""

import json
import re
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, configuration
from flax import linen as nn

from data import readers
from data.couplings import COUPLINGS, Coupling
from data.dequantization import DEQUANTIZATIONS, Dequantization, Noise
from data.readers import Item, Split
from denoising import Prediction
from errors import ConfigError
from evaluation.compare import compare
from evaluation.evaluate import evaluate, extractors_of
from evaluation.features import FEATURES, FeatureKind
from evaluation.metrics import METRICS, Metric, check_options
from evaluation.report import Report
from experiment.build import build
from experiment.class_guidance import GUIDANCES, GuidanceMethod
from experiment.sampler import Checkpoint
from experiment.tasks import TASKS, Input, InverseProblem, Measurement
from guidance import operators
from jobs.plan import describe
from jobs.sample import TaskRun, draw_plain
from jobs.workdir import Workdir
from losses import LOSSES, ScoreMatching
from metrics.features import Extracted, Extractor
from models import NETWORKS
from numerics.arrays import pytree
from objectives.uncertainty import TARGETS
from objectives.variational import VARIANCES, Variance, step_divergence
from sde_lib import SDES, VPSDE
from solvers import ADAPTIVE, SOLVERS
from solvers.ddim import DDIM
from solvers.heun import SCALINGS, VARIABLES, Variable
from time_grids import TIME_GRIDS, Grid
from training.optimizers import OPTIMIZERS, SGD
from training.schedules import SCHEDULES, Constant

FIELDS = TINY | {"sampling.variant": None, "eval.samples": 8}


def built(**sections):
    """Build TINY with other fields: section={field: value}."""
    fields = {f"{s}.{name}": v for s, given in sections.items() for name, v in given.items()}
    return build(configuration(FIELDS | fields), overrides=frozenset(fields))


def checkpoint_of(experiment):
    """A network that was never trained."""
    params = jax.jit(experiment.trainer.init)(jax.random.key(0))
    return Checkpoint(step=1, denoiser=experiment.model.denoiser(params))


def drawn(experiment, count=4):
    return draw_plain(experiment, checkpoint_of(experiment), count).samples


def evaluated(folder, **options):
    """Evaluate twice; return the results and the comparison of the two."""
    experiment = built(eval=options)
    check_options(experiment.evaluation, experiment.data.kind)
    files = []
    for name in "ab":
        workdir = Workdir(folder / name)
        extractors = extractors_of(experiment, workdir)
        table = evaluate(experiment, checkpoint_of(experiment), workdir, extractors)
        files.append(workdir.eval / "1.json")
    return json.loads(files[0].read_text()), table, compare(*files)


@pytest.mark.slow
def test_metric_of_likelihoods(monkeypatch, tmp_path):
    row = Metric(
        compute=lambda evaluation: Report(
            {"mean": evaluation.checkpoint.step + 0.5, "over_images": 0.25},
            {"dummy": np.arange(4.0)},
        ),
        rows=lambda result: iter([("a dummy metric", f"{result['mean']:.2f}", "per dummy")]),
        comparable=("images.test", "loss."),
    )
    monkeypatch.setitem(METRICS, "dummy", row)
    results, table, comparison = evaluated(tmp_path, metrics=("dummy",))
    assert results["dummy"] == {"mean": 1.5, "over_images": 0.25}
    assert "a dummy metric  1.50   per dummy" in table
    assert "dummy  1.5000" in comparison
    with np.load(tmp_path / "a" / "eval" / "1.npz") as arrays:
        np.testing.assert_array_equal(arrays["dummy"], np.arange(4.0))


@pytest.mark.slow
def test_metric_of_samples(monkeypatch, tmp_path):
    def compute(sets):
        means = [float(np.mean([p["samples"].mean() for p in sets.samples(s)])) for s in sets.seeds]
        value = {"mean": means[0], "std": None, "per_seed": means}
        return Report({extractor.name: value for extractor in sets.evaluation.extractors}, {})

    row = Metric(
        compute=compute,
        rows=lambda result: iter([("brightness", f"{result['pixels']['mean']:.1f}", "of 255")]),
        comparable=("eval.samples",),
        of_samples=True,
        min_samples=8,
    )
    monkeypatch.setitem(METRICS, "dummy", row)
    results, table, comparison = evaluated(tmp_path, metrics=("dummy",))
    assert 0 < results["dummy"]["pixels"]["mean"] < 255
    assert results["samples"]["count"] == 8
    assert "brightness" in table
    assert "dummy" in comparison
    few = built(eval={"metrics": ("dummy",), "samples": 7})
    with pytest.raises(
        ConfigError, match=r"eval\.samples=7 is too small for dummy; give at least 8"
    ):
        check_options(few.evaluation, few.data.kind)


@pytest.mark.slow
def test_features(monkeypatch, tmp_path):
    def compute(images):
        features = images.reshape(len(images), -1)[:, :3] / 255
        return Extracted(features, None)

    row = FeatureKind(make=lambda experiment, workdir: Extractor("dummy", "0", compute))
    monkeypatch.setitem(FEATURES, "dummy", row)
    results, table, comparison = evaluated(tmp_path, metrics=("kid",), features=("dummy",))
    assert results["kid"].keys() == {"dummy"}
    assert results["protocol"]["extractors"] == {"dummy": "0"}
    assert "KID" in table
    assert "kid mean, dummy" in comparison


@dataclass(frozen=True, kw_only=True)
class Shrink(Measurement):
    """Find an image from its means over blocks, as a user would add it."""

    factor: int = 4

    def operator(self, shape):
        return operators.downsampling(shape, self.factor)


@pytest.mark.slow
def test_inverse_problem(monkeypatch):
    monkeypatch.setitem(TASKS, "dummy", (Input, InverseProblem, Shrink))
    task = {"name": "dummy", "input": "test:0-1", "factor": 2}
    experiment = built(task=task, sampling={"name": "ddim"})
    found = TaskRun(experiment, experiment.sampler.task, 4).run(checkpoint_of(experiment))
    assert found.samples.shape == (4, 8, 8, 1)
    assert found.arrays["measurement"].shape == (2, 4, 4, 1)
    assert "measurement error" in found.summary
    assert re.search("task +dummy", describe(experiment))
    assert experiment.config["sampling"]["clip"] == "range", "as for all inverse problems"
    with pytest.raises(
        ConfigError, match=r"config\.task\.mask='left' is not used with name='dummy"
    ):
        built(task=task | {"mask": "left"})


@pytree()
@dataclass(frozen=True, kw_only=True)
class Push:
    """A guidance that moves every prediction of x0 toward white."""

    amount: float
    batched_fields = ()
    evaluations = 3

    def __call__(self, denoiser, x, t):
        prediction = denoiser.predict(x, t)
        gradient = jnp.full_like(x, 1.0) * self.amount
        return denoiser.guided(prediction, gradient, x, t)


@pytest.mark.slow
def test_guidance(monkeypatch):
    row = GuidanceMethod(
        make=lambda batch: Push(amount=batch.options.resolved_scale),
        sample_classes=lambda classes: 3,
        default_scale=0.25,
        evaluations=3,
    )
    monkeypatch.setitem(GUIDANCES, "dummy", row)
    plain, guided = built(), built(guidance={"name": "dummy"})
    assert guided.sampler.evaluations == 3 * plain.sampler.evaluations
    assert guided.sampler.sample_classes == 3
    stronger = built(guidance={"name": "dummy", "scale": 1.0})
    means = [drawn(experiment).mean() for experiment in (plain, guided, stronger)]
    assert means[0] < means[1] < means[2]
    assert re.search("guidance +dummy", describe(guided))
    with pytest.raises(ConfigError, match=r"choose classifier or .* or dummy"):
        built(guidance={"scale": 2.0})


@pytest.mark.slow
def test_time_grid(monkeypatch):
    def cubic(sde, u, t_min, rho):
        return (1 + (np.cbrt(t_min) - 1) * u) ** 3

    monkeypatch.setitem(TIME_GRIDS, "dummy", Grid(cubic))
    experiment = built(sampling={"grid": "dummy", "name": "ddim"}, discrete_bound={"grid": "dummy"})
    times = experiment.sampler.solve.schedule.of(experiment.model.sde)
    np.testing.assert_allclose(np.diff(np.cbrt(times), 2), 0, atol=1e-12)
    assert len(drawn(experiment)) == 4
    assert experiment.config["sampling"]["steps"] == TINY["sampling.steps"]
    assert len(experiment.likelihood.discrete_bound.schedule.of(experiment.model.sde)) == 1001


@pytest.mark.slow
def test_variable_and_scaling_of_heun(monkeypatch):
    """Twice sigma and a constant scaling take the same steps as sigma and none."""
    double = Variable(lambda s: 2 * s, lambda u: u / 2, lambda s: 0.5)
    monkeypatch.setitem(VARIABLES, "dummy", lambda largest, smallest: double)
    monkeypatch.setitem(SCALINGS, "dummy", lambda s: (2.0, 0.0))
    images = [
        drawn(built(sampling={"name": "heun", "variable": variable, "scaling": scaling}))
        for variable, scaling in (("dummy", "dummy"), ("sigma", "none"))
    ]
    np.testing.assert_array_equal(*images)


@dataclass(frozen=True, kw_only=True)
class Ancestral(DDIM):
    eta: float = 1.0


@pytest.mark.slow
def test_solver_of_fixed_steps(monkeypatch):
    monkeypatch.setitem(SOLVERS, "dummy", Ancestral)
    found, known = (
        drawn(built(sampling={"name": name, "eta": eta}))
        for name, eta in (("dummy", None), ("ddim", 1.0))
    )
    np.testing.assert_array_equal(found, known)
    with pytest.raises(ConfigError, match=r"sampling\.order=2 is not used with name='dummy'.*eta"):
        built(sampling={"name": "dummy", "order": 2})


@pytest.mark.slow
def test_adaptive_solver(monkeypatch):
    monkeypatch.setitem(ADAPTIVE, "dummy", ADAPTIVE["ode"])
    experiment = built(sampling={"name": "dummy", "rtol": 1e-2, "atol": 1e-2, "steps": None})
    assert experiment.sampler.evaluations is None
    assert len(drawn(experiment)) == 4


@pytree()
@dataclass(frozen=True, kw_only=True)
class GentleSDE(VPSDE):
    beta_max: float = 5.0


@pytest.mark.slow
def test_process(monkeypatch):
    monkeypatch.setitem(SDES, "dummy", GentleSDE)
    experiment = built(sde={"name": "dummy", "beta_min": 0.2})
    assert experiment.config["sde"]["beta_max"] == 5.0
    assert experiment.config["sde"]["beta_min"] == 0.2
    assert experiment.model.process == "dummy"
    assert len(drawn(experiment)) == 4


class Tiny(nn.Module):
    """A network of one layer."""

    features: int = 4

    @staticmethod
    def validate(image_size, channels):
        if image_size > 8:
            raise ValueError(f"features: images of {image_size} pixels are too large")

    @nn.compact
    def __call__(self, x, cond, *, train):
        hidden = nn.Dense(self.features)(x) + cond[:, None, None, None]
        return nn.Dense(x.shape[-1])(nn.gelu(hidden))


@pytest.mark.slow
def test_network(monkeypatch):
    monkeypatch.setitem(NETWORKS, "dummy", Tiny)
    experiment = built(model={"name": "dummy", "features": 6})
    assert experiment.config["model"]["features"] == 6
    assert len(drawn(experiment)) == 4
    assert re.search(r"parameters +19 ", describe(experiment))
    with pytest.raises(ConfigError, match=r"^config\.model\.features: images of 16 pixels"):
        built(model={"name": "dummy"}, data={"image_size": 16})


@dataclass(frozen=True, kw_only=True)
class Halved(ScoreMatching):
    def estimate(self, key, denoiser, x, t, eps):
        return super().estimate(key, denoiser, x, t, eps) / 2


@pytest.mark.slow
def test_loss(monkeypatch, tmp_path):
    monkeypatch.setitem(LOSSES, "dummy", Halved)
    metrics = {"metrics": ("loss",), "loss_repeats": 1}
    found = []
    for name in ("denoising", "dummy"):
        experiment = built(loss={"name": name}, eval=metrics)
        workdir = Workdir(tmp_path / name)
        evaluate(experiment, checkpoint_of(experiment), workdir, ())
        found.append(json.loads((workdir.eval / "1.json").read_text())["loss"]["mean"])
    assert found[1] == pytest.approx(found[0] / 2, rel=1e-6)


@dataclass(frozen=True, kw_only=True)
class Uphill(SGD):
    momentum: float = 0.0

    def transformation(self, rate):
        return super().transformation(lambda k: -rate(k))


@dataclass(frozen=True, kw_only=True)
class Doubling(Constant):
    def schedule(self, *, steps, batch_size):
        return lambda k: self.lr * 2.0**k


def test_optimizer_and_schedule(monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "dummy", Uphill)
    monkeypatch.setitem(SCHEDULES, "dummy", Doubling)
    fields = {"name": "dummy", "schedule": "dummy", "lr": 1.0, "grad_clip": 0.0}
    experiment = built(optim=fields)
    assert experiment.config["optim"]["momentum"] == 0.0
    optimizer, value = experiment.trainer.optimizer, jnp.zeros(1)
    state = optimizer.init(value)
    for _ in range(3):
        value, state = optimizer.update(jnp.ones(1), state, value)
    assert float(value[0]) == 1 + 2 + 4
    message = r"optim\.beta1=0\.5 is not used with name='dummy', schedule='dummy'.*momentum, name"
    with pytest.raises(ConfigError, match=message):
        built(optim=fields | {"beta1": 0.5})


@pytest.mark.slow
def test_reader(monkeypatch):
    def read(name, data_dir):
        rng = np.random.default_rng(0)

        def split(count):
            images = rng.integers(0, 5, (count, 8, 8, 1), np.uint8)
            return Split([Item(name, image, None) for image in images])

        return {"train": split(12), "test": split(4)}

    row = readers.Reader(accepts=lambda name: name == "dummy", read=read, gray_levels=5)
    monkeypatch.setattr(readers, "READERS", {"dummy": row, **readers.READERS})
    experiment = built(data={"name": "dummy"})
    assert experiment.data.quantizer.gray_levels == 5
    assert (len(experiment.data.splits.train), len(experiment.data.splits.test)) == (12, 4)
    assert set(np.unique(drawn(experiment))) <= {0, 64, 128, 191, 255}


@dataclass(frozen=True, kw_only=True)
class Reversed(Coupling):
    """The first end belongs to the last image."""

    paired = True

    def ends(self, x0, x1, rng):
        return x1[::-1]


def test_coupling(monkeypatch):
    monkeypatch.setitem(COUPLINGS, "dummy", Reversed)
    coupling = {"name": "dummy", "data": "digits"}
    fields = {"parameterization": "velocity"}
    experiment = built(
        coupling=coupling, denoiser=fields, sde={"name": "linear"}, sampling={"name": "ddim"}
    )
    pairs = experiment.ends.training_batches(4, 0, labels=False).at(0)
    np.testing.assert_array_equal(pairs[:, 0], pairs[::-1, 1])


def test_dequantization(monkeypatch):
    """Noise in the lower half of each bin: of density 2 there, so that log q = D log 2."""
    row = Dequantization(
        training=lambda quantizer, stored, uniforms: quantizer.dequantize(stored, uniforms / 2),
        noisy=True,
        noise=lambda uniforms, width: Noise(uniforms / 2, np.full(len(uniforms), 64 * np.log(2))),
    )
    monkeypatch.setitem(DEQUANTIZATIONS, "dummy", row)
    data = built(data={"dequantization": "dummy"}).data
    levels, places = data.splits.test[:4], jnp.arange(4)
    trained = data.batch(levels, places, seed=0, draw=0)
    x, log_q = data.dequantized(levels, places, seed=0, draw=0)
    np.testing.assert_array_equal(x, trained)
    np.testing.assert_allclose(log_q, 64 * np.log(2), rtol=1e-6)
    position = np.asarray(data.scaler.inverse(x)) * 17 - levels
    assert 0 <= position.min() < 0.02
    assert 0.48 < position.max() < 0.5 + 1e-5


def test_variance_and_target(monkeypatch):
    """A variance of reverse steps serves sampler and bound; a target serves the variance head."""
    row = Variance(lambda prediction, growth, log_range: 0.5 * log_range)
    monkeypatch.setitem(VARIANCES, "dummy", row)
    monkeypatch.setitem(TARGETS, "dummy", TARGETS["residual"])
    experiment = built(
        sampling={"predictor": "ancestral", "variance": "dummy"},
        discrete_bound={"variance": "dummy"},
        variance_head={"target": "dummy"},
    )
    assert experiment.parts.variance_head.trainer.loss.target == "dummy"
    options = experiment.likelihood.discrete_bound.options
    prediction = Prediction(jnp.zeros(3), jnp.zeros(3))
    term = step_divergence(prediction, jnp.zeros(3), jnp.ones(()), jnp.ones(()), options.variance)
    np.testing.assert_allclose(term, 0.5 * (0.5 + np.expm1(-0.5)), rtol=1e-6)
    assert experiment.sampler.solve.solver.predictor.variance == "dummy"
