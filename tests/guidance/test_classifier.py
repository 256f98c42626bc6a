"""Classifiers of noisy images, on Gaussian classes, where p(y | x_t) is known; their features."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from analytic import Mixture, gaussian
from jax.sharding import AxisType, Mesh
from jax.tree_util import Partial
from networks import named, quick_jit, seeded_batch, seeded_params

from denoising import CONDITIONINGS
from guidance.classifier import Classifier, CrossEntropy
from models import CLASSIFIERS, with_features
from models.adm_classifier import ADMClassifier
from models.wide_resnet import WideResNet
from numerics.arrays import normal_like, sample_keys
from sde_lib import EDMSDE, VESDE, VPSDE, LinearPathSDE, SubVPSDE
from training.averages import MovingAverage
from training.optimizers import Optimizer
from training.parallel import DataParallel
from training.schedules import Constant
from training.step import Trainer

KEY = jax.random.key(0)
PROCESSES = [
    pytest.param(VPSDE(), id="vp"),
    pytest.param(SubVPSDE(), id="subvp"),
    pytest.param(VESDE(), id="ve"),
    pytest.param(LinearPathSDE(), id="linear"),
    pytest.param(EDMSDE(), id="edm"),
]
every_process = pytest.mark.parametrize("sde", PROCESSES)

VARIANCE = 0.25  # of every class here, in all directions


def classes_at(weights, means):
    means = np.array(means)
    return Mixture(
        np.array(weights), means, np.stack([VARIANCE * np.eye(means.shape[1])] * len(means))
    )


SQUARE = classes_at([0.1, 0.2, 0.3, 0.4], [[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
LINE = classes_at([0.5, 0.5], [[-1.0], [1.0]])


def posterior(sde, tables, x, t):
    """Exact logits: weight times density of each class, at the x_t that the network's input was."""
    weights, means = (jnp.asarray(table, x.dtype) for table in tables)
    alpha, sigma = sde.alpha(t)[:, None], sde.sigma(t)[:, None]
    centered = (x * jnp.sqrt(alpha**2 + sigma**2))[:, None] - alpha[..., None] * means[None]
    distance = jnp.sum(centered**2, axis=-1) / (2 * (alpha**2 * VARIANCE + sigma**2))
    return jnp.log(weights)[None] - distance, x


def exact_classifier(sde, truth, **fields):
    network = Partial(posterior, sde, (truth.weights, truth.means))
    return Classifier(sde=sde, network=network, conditioning="t", **fields)


@jax.jit
def log_probs_and_gradients(classifier, x, t):
    gradient = jax.grad(lambda x: classifier.log_prob(x, t).sum())(x)
    return classifier.log_prob(x, t), gradient


@every_process
def test_log_prob_is_the_posterior_and_its_gradient_guides(x64, sde):
    """Its gradient is the score of the class alone less the score of all of them together."""
    count, times = len(SQUARE.weights), np.repeat([1e-3, 0.2, 0.9], 4)
    labels = np.tile(np.arange(count), 3)
    x = np.tile(np.random.default_rng(0).normal(size=(1, 2)), (12, 1))
    classifier = exact_classifier(sde, SQUARE, labels=jnp.asarray(labels))
    found, gradients = log_probs_and_gradients(classifier, jnp.asarray(x), jnp.asarray(times))
    np.testing.assert_allclose(np.exp(found).reshape(3, count).sum(axis=1), 1, rtol=1e-12)
    for i, (t, label) in enumerate(zip(times, labels, strict=True)):
        noisy = SQUARE.marginal(sde, t)
        alone = [gaussian(m, c) for m, c in zip(noisy.means, noisy.covariances, strict=True)]
        joint = np.log(noisy.weights) + [a.log_prob(x[i : i + 1])[0] for a in alone]
        expected = joint - noisy.log_prob(x[i : i + 1])
        np.testing.assert_allclose(found[i], expected[label], rtol=1e-6, atol=1e-9)
        scores = -(x[i] - noisy.means) / noisy.covariances[0, 0, 0]
        pull = scores[label] - np.exp(expected) @ scores
        np.testing.assert_allclose(gradients[i], pull, rtol=1e-6, atol=1e-8 * np.abs(scores).max())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sde", "conditioning"),
    [
        (VPSDE(), "timestep_999"),
        (SubVPSDE(), "log_snr"),
        (VESDE(), "log_sigma"),
        (LinearPathSDE(), "timestep"),
        (EDMSDE(), "edm"),
    ],
)
def test_network_sees_images_of_the_same_size_and_its_own_time(sde, conditioning):
    seen = []

    def network(x, condition):
        seen.append((x, condition))
        return x, x

    classifier = Classifier(sde=sde, network=network, conditioning=conditioning, num_timesteps=50)
    t = jnp.array([1e-5, 0.3, 1.0])
    x0, eps = jax.random.rademacher(KEY, (2, 3, 4000)).astype(float)
    classifier.logits(sde.perturb(x0, t, eps), t)
    ((inputs, condition),) = seen
    # Of data and noise of unit variance.
    np.testing.assert_allclose(np.mean(np.square(inputs), axis=1), 1, atol=0.06)
    np.testing.assert_array_equal(condition, CONDITIONINGS[conditioning](sde, t, 50))
    classifier.logits(x0, 0.3)
    np.testing.assert_allclose(seen[1][1], np.broadcast_to(condition[1], 3), rtol=1e-6)


@pytest.mark.slow
def test_vp_images_are_fed_as_they_are():
    classifier = Classifier(sde=VPSDE(), network=lambda x, t: (x, x))
    x = jax.random.normal(KEY, (3, 2))
    np.testing.assert_allclose(classifier.logits(x, jnp.array([1e-5, 0.3, 1.0])), x, rtol=1e-6)


def best_accuracy_and_entropy(sde, times):
    """Of the classes of LINE: how often the best classifier is right, and H(y | x_t)."""
    times = jnp.asarray(times, float)
    alpha, sigma = (np.float64(f(times))[:, None] for f in (sde.alpha, sde.sigma))
    std = np.sqrt(alpha**2 * VARIANCE + sigma**2)
    x = alpha + std * np.linspace(-9, 9, 2001)
    # log p(1 | x) - log p(0 | x) = 2 alpha x / std^2.
    surprise = np.logaddexp(0, -2 * alpha * x / std**2) * scipy.stats.norm.pdf(x, alpha, std)
    entropy = scipy.integrate.simpson(surprise, x=x)
    return scipy.stats.norm.cdf(alpha / std)[:, 0], entropy


def line_images(seed, count):
    labels = np.random.default_rng(seed).integers(0, 2, count)
    noise = np.random.default_rng(seed + 1).normal(size=(count, 1))
    return (2.0 * labels[:, None] - 1 + 0.5 * noise).astype(np.float32), labels


@pytest.mark.slow
@pytest.mark.parametrize(("sde", "clean"), [(VPSDE(), 0.25), (VESDE(sigma_max=10.0), 0.0)])
def test_loss_of_the_true_posterior_is_the_entropy_that_is_left(sde, clean):
    """E_t H(y | x_t), by quadrature; and no other temperature of the logits does better."""
    x0, labels = line_images(0, 40_000)
    loss = CrossEntropy(t_min=0.01, clean_fraction=clean)
    exact = exact_classifier(sde, LINE, labels=jnp.asarray(labels))

    def values(factor, key):
        def network(x, t):
            logits, features = exact.network(x, t)
            return factor * logits, features

        return loss(key, dataclasses.replace(exact, network=network), jnp.asarray(x0)).values

    slope_of = jax.jit(lambda key: jax.jvp(lambda factor: values(factor, key), (1.0,), (1.0,)))
    losses, slopes = slope_of(KEY)
    times = np.linspace(0.01, 1, 101)
    _, entropies = best_accuracy_and_entropy(sde, times)
    average = scipy.integrate.simpson(entropies, x=times) / 0.99
    expected = clean * entropies[0] + (1 - clean) * average
    for numbers, truth in ((losses, expected), (slopes, 0)):
        assert numbers.shape == (40_000,)
        numbers = np.asarray(numbers, np.float64)
        assert abs(numbers.mean() - truth) < 4 * numbers.std() / math.sqrt(40_000)


def test_times_are_the_smallest_for_a_share_and_uniform_for_the_rest():
    t = np.asarray(CrossEntropy(t_min=0.2, clean_fraction=0.3).draw_times(KEY, 10_000))
    smallest = t == np.float32(0.2)
    assert abs(smallest.mean() - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 10_000)
    assert scipy.stats.kstest(t[~smallest], "uniform", args=(0.2, 0.8)).pvalue > 0.01
    everywhere = CrossEntropy(clean_fraction=0.0).draw_times(KEY, 10_000)
    assert scipy.stats.kstest(everywhere, "uniform").pvalue > 0.01


def linear(params, x, t):
    return x @ params["kernel"] + params["bias"][None], x


@jax.jit
def most_probable_classes(classifier, x0, t):
    """At x_t, with the same noise of an image at every t."""
    eps = normal_like(sample_keys(KEY, jnp.arange(len(x0))), x0)
    t = jnp.broadcast_to(jnp.asarray(t, x0.dtype), len(x0))
    return jnp.argmax(classifier.logits(classifier.sde.perturb(x0, t, eps), t), axis=1)


@pytest.mark.slow
def test_trainer_trains_it_to_the_best_accuracy_at_every_time():
    """Of these classes the best classifier is linear, the same for all times."""
    sde = VPSDE()

    def make(params, dropout=None):
        return Classifier(sde=sde, network=Partial(linear, params))

    trainer = Trainer(
        init=lambda key: {"kernel": jnp.zeros((1, 2)), "bias": jnp.zeros(2)},
        denoiser=make,
        loss=CrossEntropy(),
        optimizer=Optimizer(learning_rate=Constant(lr=0.2, warmup=0)),
        average=MovingAverage(),
        parallel=DataParallel(Mesh(jax.devices()[:1], ("data",), axis_types=(AxisType.Auto,))),
        classes=2,
        label_dropout=0.0,
    )
    step, state = trainer.compiled_step(), trainer.init_state(KEY)
    for i in range(20):
        x0, labels = line_images(i, 256)
        batch = trainer.parallel.put_batch(x0), trainer.parallel.put_batch(labels)
        state, scalars = step(KEY, state, *batch)
        if i == 0:
            np.testing.assert_allclose(scalars["loss"], math.log(2), rtol=1e-6)
    x0, labels = line_images(1000, 10_000)
    times = (1e-5, 0.2, 0.5)
    trained = make(state.ema_params)
    found = [np.mean(most_probable_classes(trained, jnp.asarray(x0), t) == labels) for t in times]
    best, _ = best_accuracy_and_entropy(sde, times)
    assert np.all(np.abs(found - best) < 4 * np.sqrt(best * (1 - best) / 10_000))


SMALL = {
    "features": 16,
    "channel_multipliers": (1,),
    "blocks_per_resolution": 1,
    "attention_resolutions": (),
    "head_width": 8,
    "num_classes": 5,
}
POOLS = ("attention", "adaptive", "spatial_v2")  # spatial's features are made where the last's are
NETWORKS = {pool: ADMClassifier(**SMALL, pool=pool) for pool in POOLS} | {
    "wide_resnet": WideResNet(blocks_per_group=1, channel_multiplier=1, features=4, num_classes=5)
}
LAST_LAYER = {"attention": "pool/output", "spatial_v2": "output_1"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_what_the_last_layer_makes_the_logits_of(name):
    network, params = NETWORKS[name], seeded_params(NETWORKS[name])
    assert type(network) in CLASSIFIERS.values()
    x, t = jnp.asarray(seeded_batch()[0]), jnp.array([1e-5, 0.5])

    def apply(params, x, cond):
        return with_features(network, params, x, cond)

    @quick_jit
    def evaluate(params, x):
        answer = Classifier(sde=VPSDE(), network=Partial(apply, params)).outputs(x, t)
        return answer, network.apply({"params": params}, x, 999 * t, train=False)

    (logits, features), alone = evaluate(params, x)
    np.testing.assert_allclose(logits, alone, rtol=1e-4, atol=1e-4)
    layer = LAST_LAYER.get(name, "output")
    kernel, bias = (named(params)[f"{layer}/{leaf}"] for leaf in ("kernel", "bias"))
    np.testing.assert_allclose(np.asarray(features) @ kernel + bias, logits, rtol=1e-4, atol=1e-4)
    # Row 1 does not know row 0.
    (others, other_features), _ = evaluate(params, x.at[0].multiply(-1))
    assert np.abs(others[0] - logits[0]).max() > 1e-3
    np.testing.assert_array_equal(others[1], logits[1])
    np.testing.assert_array_equal(other_features[1], features[1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"conditioning": "time"},
            r"conditioning='time' is unknown; choose one of: edm, iddpm, log_sigma",
        ),
        ({"num_timesteps": 1}, "num_timesteps=1 must be at least 2"),
    ],
)
def test_bad_fields_of_a_classifier_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Classifier(sde=VPSDE(), network=lambda x, t: (x, x), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"t_min": 0.0}, r"t_min=0.0 must lie in \(0, 1\)"),
        (
            {"clean_fraction": 1.0},
            r"clean_fraction=1.0 must lie in \[0, 1\)",
        ),
        ({"clean_fraction": -0.1}, r"clean_fraction=-0.1 must lie in"),
    ],
)
def test_bad_fields_of_the_loss_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CrossEntropy(**fields)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, r"labels=None does not name the class of each of 3 images; give an array"),
        (jnp.zeros(2, int), r"labels=an array of shape \(2,\) does not name"),
    ],
)
def test_missing_labels_are_refused(labels, message):
    classifier = Classifier(sde=VPSDE(), network=lambda x, t: (x, x), labels=labels)
    with pytest.raises(ValueError, match=message):
        classifier.log_prob(jnp.zeros((3, 4)), 0.5)


@pytest.mark.parametrize(
    "network",
    [
        pytest.param(lambda x, t: x, id="logits alone"),
        pytest.param(lambda x, t: (x[:, 0], x), id="one number"),
        pytest.param(lambda x, t: (x[None], x), id="three axes"),
        pytest.param(lambda x, t: (x, x[:2]), id="features of other images"),
    ],
)
def test_outputs_of_another_shape_are_refused(network):
    classifier = Classifier(sde=VPSDE(), network=network)
    with pytest.raises(ValueError, match=r"network returns .* for 3 images; it must return logits"):
        classifier.logits(jnp.zeros((3, 4)), 0.5)


@pytest.mark.parametrize("label", [-1, 2])
def test_log_prob_of_no_class_is_not_a_number(label):
    labels = jnp.array([0, 1, label])
    classifier = Classifier(
        sde=VPSDE(), network=lambda x, t: (jnp.zeros((len(x), 2)), x), labels=labels
    )
    np.testing.assert_array_equal(
        np.isnan(classifier.log_prob(jnp.zeros((3, 1)), 0.1)), [False, False, True]
    )
