"""Inception: resizes against loops, pools and folding against definitions, the network against
pytorch-fid, and its weights from a file server on loopback.
"""

import re
import zlib
from collections.abc import Iterator

import jax.numpy as jnp
import numpy as np
import pytest
from file_server import CONTENT, SHA256, serving
from scipy import ndimage

from files.writing import sha256_of
from metrics.inception import weights
from metrics.inception.network import IMAGE_SIZE, average_pool, halving_pool, max_pool, preprocess
from metrics.inception.weights import (
    activations,
    folded,
    inception_features,
    parameters,
    weights_file,
)
from published.formats.torch_writer import write_torch


def looked_up(image: np.ndarray, row: float, column: float) -> np.ndarray:
    """Bilinear interpolation at one place, the last pixel repeated beyond the border."""
    top, left = int(row), int(column)
    bottom, right = min(top + 1, len(image) - 1), min(left + 1, image.shape[1] - 1)
    down, along = row - top, column - left
    upper = (1 - along) * image[top, left] + along * image[top, right]
    lower = (1 - along) * image[bottom, left] + along * image[bottom, right]
    return (1 - down) * upper + down * lower


@pytest.mark.parametrize("size", [(6, 5), (310, 299)])
def test_resizes_are_those_of_tensorflow_1_and_of_pytorch(size):
    images = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
    values = images[0].astype(np.float64)
    places = [(0, 0), (1, 298), (298, 3), (150, 151), (298, 298), (77, 230)]
    ratios = np.array(size) / IMAGE_SIZE
    for resize in ("tf1", "pytorch"):
        got = np.asarray(preprocess(jnp.asarray(images), resize=resize))
        assert got.shape == (1, IMAGE_SIZE, IMAGE_SIZE, 3)
        for place in places:
            if resize == "tf1":
                expected = looked_up(values, *(place * ratios)) / 128 - 1
            else:
                centers = np.maximum((np.array(place) + 0.5) * ratios - 0.5, 0)
                expected = looked_up(values, *centers) / 127.5 - 1
            np.testing.assert_allclose(got[0, *place], expected, atol=1e-4)


def test_gray_is_repeated_and_other_channels_are_refused():
    gray = np.random.default_rng(0).integers(0, 256, (1, 6, 5, 1), dtype=np.uint8)
    np.testing.assert_array_equal(
        preprocess(jnp.asarray(gray)), preprocess(jnp.asarray(gray.repeat(3, axis=-1)))
    )
    with pytest.raises(ValueError, match=r"the images have 4 channels; Inception needs 1 .* or 3"):
        preprocess(jnp.zeros((1, 6, 5, 4), jnp.uint8))
    with pytest.raises(ValueError, match=r"resize='area' is unknown; choose one of: pytorch, tf1"):
        preprocess(jnp.zeros((1, 6, 5, 3), jnp.uint8), resize="area")


@pytest.mark.slow
def test_pools_are_those_of_the_pixels_in_the_image():
    x = np.random.default_rng(0).normal(size=(1, 7, 8, 2)).astype(np.float32)
    for channel in range(2):
        image = x[0, :, :, channel]
        counts = ndimage.generic_filter(np.ones_like(image), np.sum, 3, mode="constant")
        sums = ndimage.generic_filter(image, np.sum, 3, mode="constant")
        maxima = ndimage.maximum_filter(image, 3, mode="constant", cval=-np.inf)
        for pool, expected in (
            (average_pool, sums / counts),
            (max_pool, maxima),
            (halving_pool, maxima[1:-1:2, 1:-1:2]),
        ):
            got = np.asarray(pool(jnp.asarray(x)))[0, :, :, channel]
            np.testing.assert_allclose(got, expected, atol=1e-6)


def test_folded_layers_are_convolution_and_normalization():
    rng = np.random.default_rng(0)
    kernel, x = rng.normal(size=(5, 4)), rng.normal(size=5)
    scale, offset, mean, variance = rng.uniform(0.5, 2.0, (4, 4))
    layer = folded(kernel, scale, offset, mean, variance)
    expected = scale * (x @ kernel - mean) / np.sqrt(variance + 0.001) + offset
    np.testing.assert_allclose(x @ layer["kernel"] + layer["bias"], expected, rtol=1e-5)


def random_tensor(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor of the file, of numbers that its name alone decides."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    if name.endswith("running_var"):
        return rng.uniform(0.5, 1.5, shape).astype(np.float32)
    if name.endswith("bn.weight"):
        return rng.uniform(0.8, 1.2, shape).astype(np.float32)
    normal = rng.standard_normal(shape, dtype=np.float32)
    return normal * np.float32(0.2 if len(shape) == 1 else (2 / np.prod(shape[1:])) ** 0.5)


def tensors_of(tree: dict, path: tuple[str, ...] = ()) -> Iterator[tuple[str, np.ndarray]]:
    """All tensors of the file, random, by name."""
    if "kernel" not in tree:
        for name, inside in tree.items():
            yield from tensors_of(inside, (*path, name))
        return
    shape, name = tree["kernel"].shape, ".".join(path)
    kernel = (*shape[-2:][::-1], *(shape[:-2] or (1, 1)))
    if name == "fc":
        shapes = {"fc.weight": kernel[:2], "fc.bias": kernel[:1]}
    else:
        norm = ("weight", "bias", "running_mean", "running_var")
        shapes = {f"{name}.conv.weight": kernel, **{f"{name}.bn.{n}": kernel[:1] for n in norm}}
        yield f"{name}.bn.num_batches_tracked", np.zeros((), np.int64)
    yield from ((name, random_tensor(name, shape)) for name, shape in shapes.items())


@pytest.fixture(scope="module")
def random_weights():
    return dict(tensors_of(weights.template()))


# Computed by pytorch-fid's network in float64 with these weights, for three random images resized
# and scaled as in TensorFlow 1: some features, the norms of all, and some logits.
FEATURES = {
    74: [2.831475, 2.719079, 2.888244],
    1387: [4.55586, 4.482881, 4.704575],
    1470: [11.196582, 11.037114, 11.061227],
    1959: [1.496499, 1.481328, 1.45051],
}
FEATURES_NORM = [88.50248, 87.18603, 88.04421]
LOGITS = {
    0: [0.3957, 0.413499, 0.381505],
    250: [2.328156, 2.443805, 2.458686],
    500: [2.88049, 2.921124, 2.89247],
    750: [-3.308895, -3.280083, -3.309587],
    1000: [2.351494, 2.236207, 2.275033],
}


@pytest.mark.slow
def test_network_is_that_of_pytorch_fid(random_weights, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    write_torch(tmp_path / "weights.pth", random_weights)
    extractor = inception_features(tmp_path / "weights.pth", batch_size=2)
    features, probabilities = extractor(images)  # a batch of two, and one that is padded
    assert features.shape == (3, 2048)
    assert features.dtype == probabilities.dtype == np.float32
    for column, expected in FEATURES.items():
        np.testing.assert_allclose(features[:, column], expected, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), FEATURES_NORM, rtol=1e-5)

    found = activations(parameters(random_weights), images[:2], resize="tf1")
    for column, expected in LOGITS.items():
        np.testing.assert_allclose(found.logits[:, column], expected[:2], rtol=1e-5)
    # The score's probabilities are without the bias.
    scores = np.asarray(found.logits, np.float64) - random_weights["fc.bias"]
    odds = np.exp(scores)
    np.testing.assert_allclose(probabilities[:2], odds / odds.sum(axis=1, keepdims=True), rtol=1e-4)
    assert extractor.name == "inception"
    assert extractor.digest == f"{sha256_of(tmp_path / 'weights.pth')[:16]}-tf1"


@pytest.mark.slow
def test_every_tensor_is_accounted_for(random_weights):
    def refused(change: dict, message: str) -> None:
        tensors = {k: v for k, v in (random_weights | change).items() if v is not None}
        with pytest.raises(ValueError, match=message):
            parameters(tensors, source="some.pth")

    name = "Mixed_7a.branch3x3_1.bn.running_var"
    refused({name: None}, rf"some.pth .* 1 missing: {re.escape(name)} for Mixed_7a/branch3x3_1/")
    refused({"AuxLogits.fc.bias": np.zeros(3)}, r"1 surplus: AuxLogits.fc.bias \(3,\)")
    refused({"fc.bias": np.zeros(1000)}, r"1 wrongly shaped: fc.bias \(1000,\) for fc/bias")
    refused({name: np.full(192, np.nan)}, rf"{re.escape(name)} .*192 of 192 .* not finite")


def test_bad_files_and_options_are_refused(tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(ValueError, match=r"weights.pth: it is damaged"):
        inception_features(tmp_path / "weights.pth")
    write_torch(tmp_path / "list.pth", [1, 2])
    with pytest.raises(ValueError, match=r"list.pth holds a list, not tensors by name"):
        inception_features(tmp_path / "list.pth")
    with pytest.raises(ValueError, match=r"batch_size=0 must be at least 1"):
        inception_features(tmp_path / "list.pth", batch_size=0)


@pytest.fixture
def server(monkeypatch):
    with serving(monkeypatch) as handler:
        yield handler


def test_download_arrives_once_and_whole(server, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):  # the second time, it is there
        path = weights_file(url=server.url, sha256=SHA256)
        assert path == tmp_path / "cache/scoresde/weights.pth"
        assert path.read_bytes() == CONTENT
    assert server.requested == [None]
    assert list(path.parent.iterdir()) == [path]

    path.write_bytes(CONTENT[:-1])
    with pytest.raises(ValueError, match=r"weights.pth is damaged: .* delete it"):
        weights_file(url=server.url, sha256=SHA256)
    mine = tmp_path / "mine.pth"
    mine.write_bytes(b"other weights")
    assert weights_file(str(mine), url=server.url, sha256=SHA256) == mine
    with pytest.raises(FileNotFoundError, match=r"inception_weights='nowhere.pth' is not a file"):
        weights_file("nowhere.pth")
    assert server.requested == [None]
