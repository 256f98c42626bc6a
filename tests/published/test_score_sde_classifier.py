"""score_sde's classifier of noisy images: imported, it guides as the original does.

The references are outputs of the original in double precision, and gradients of log p(y | x_t) with
respect to images in [0, 1] with noise, before their channels are whitened. The shapes are those of
flax 0.3.1, the version that the project pins.
"""

import gzip
import json
import zlib

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import abstract_params, quick_jit
from published_files import DATA, SIZE, TOLERANCE, images

from errors import ConfigError, FileError
from experiment.build import build_network
from experiment.configurations import load_configuration
from files.nested import unflatten
from guidance.classifier import Classifier
from models import with_features
from models.wide_resnet import WideResNet
from published import exchange, score_sde_classifier
from sde_lib import VESDE

NAMES = json.loads(gzip.decompress((DATA / "guided_names.json.gz").read_bytes()))
CIFAR = build_network(load_configuration("configs/ve_cifar10.py"), "classifier")[0]
NETWORKS = {
    "wide_resnet_narrow": CIFAR.clone(blocks_per_group=1, channel_multiplier=1, num_classes=4),
    "wide_resnet_wide": CIFAR.clone(blocks_per_group=2, channel_multiplier=2),
}
RANGES = {"scale": (1.0, 0.5), "bias": (0.0, 0.5), "W": (0.0, 16.0)}


def tree(name):
    """The content of a file; the fixture's generator drew the same weights."""
    return unflatten({path: drawn(path, shape) for path, shape in NAMES[name].items()})


def drawn(path, shape):
    u = np.random.default_rng(zlib.crc32(path.encode())).uniform(-1.0, 1.0, shape)
    kind = path.rpartition("/")[2]
    if kind == "kernel":
        return (u * np.sqrt(3.0 / np.prod(shape[:-1]))).astype(np.float32)
    center, half_width = RANGES[kind]
    return (center + half_width * u).astype(np.float32)


def candidate(network):
    return exchange.Candidate("ve_cifar10", network, SIZE, abstract_params)


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_logits_and_gradient_are_the_originals(tmp_path, name):
    """As `--mode=import_classifier` reads it from a file, for the fields of ve_cifar10."""
    network, source = NETWORKS[name], tmp_path / "checkpoint_1"
    source.write_bytes(flax.serialization.msgpack_serialize(tree(name)))
    project, params = exchange.import_classifier(source, candidate(network), [])
    assert project == "score_sde"
    sigma = np.array([0.3, 20.0])
    noise = np.random.default_rng(9).uniform(-1.0, 1.0, (2, SIZE, SIZE, 3))
    x = (images().astype(np.float64) + 1) / 2 + sigma[:, None, None, None] * noise
    options = load_configuration("configs/ve_cifar10.py").classifier
    classifier = Classifier(
        sde=VESDE(sigma_min=0.01, sigma_max=50.0),
        network=lambda x, cond: with_features(network, params, x, cond),
        labels=jnp.array([1, 3]),
        conditioning=options.conditioning,
        scale_input=options.scale_input,
    )
    t = jnp.asarray(np.log(sigma / 0.01) / np.log(5000.0), jnp.float32)

    @quick_jit
    def both(x):
        return classifier.logits(x, t), jax.grad(lambda x: classifier.log_prob(x, t).sum())(x)

    with np.load(DATA / "guided_outputs.npz") as references:
        pairs = zip(both(jnp.asarray(x, jnp.float32)), (name, f"{name}_gradient"), strict=True)
        for ours, key in pairs:
            theirs = references[key]
            assert np.max(np.abs(ours - theirs)) < TOLERANCE * np.max(np.abs(theirs))


def test_the_fields_of_another_file_are_named():
    content, network = tree("wide_resnet_narrow"), NETWORKS["wide_resnet_wide"]
    fields = "blocks_per_group=1", "channel_multiplier=1", "num_classes=4"
    wanted = " ".join(f"'--config.classifier.{field}'" for field in fields)
    with pytest.raises(ValueError, match=f"Set {wanted}$"):
        score_sde_classifier.import_classifier(
            content, network, SIZE, abstract_params(network), source="file"
        )


def test_other_files_are_refused(tmp_path):
    network = NETWORKS["wide_resnet_narrow"]
    with pytest.raises(FileError, match=r"^file: it is not a WideResnet of score_sde"):
        score_sde_classifier.import_classifier({}, network, SIZE, {}, source="file")
    source = tmp_path / "checkpoint_1"
    source.write_bytes(flax.serialization.msgpack_serialize({"step": 1}))
    with pytest.raises(ConfigError, match="a classifier of none of: guided-diffusion, score_sde"):
        exchange.import_classifier(source, candidate(network), [])


def test_channels_are_whitened_by_their_own_statistics():
    plain = WideResNet()
    with pytest.raises(ValueError, match=r"channel_means=\(0.5,\); valid is one .* 3, or none"):
        plain.clone(channel_means=(0.5,)).validate(32, 3)
    with pytest.raises(ValueError, match=r"channel_stds=\(1.0, 0.0, 1.0\); valid is above 0"):
        plain.clone(channel_stds=(1.0, 0.0, 1.0)).validate(32, 3)
    CIFAR.validate(32, 3)
