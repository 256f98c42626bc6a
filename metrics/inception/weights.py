"""The published weights of Inception-v3, and the feature extractor made of them.

The file is a port of the TensorFlow graph of 2015-12-05 to PyTorch. A layer there has a kernel K
and a batch normalization (scale g, offset o, mean m, variance v, epsilon 1e-3). Here it is one
convolution (see `network.py`):

    relu(g (K * x - m) / sqrt(v + 1e-3) + o) = relu(K' * x + b)
    K' = K g / sqrt(v + 1e-3)         b = o - m g / sqrt(v + 1e-3)

computed in float64. Layers have the file's names. The last one, "fc", has a kernel and a bias.
"""

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from errors import require_choice, require_in
from files.cache import cache_folder
from files.copies import local_input
from files.downloads import download
from files.kinds import require_file
from files.writing import sha256_of
from metrics.features import Extracted, Extractor, Images
from metrics.inception.network import (
    CLASSES,
    FEATURES,
    IMAGE_SIZE,
    RECIPES,
    Activations,
    Inception,
    preprocess,
)
from published.formats import read
from published.mapping import CONV, CONV_1X1, IDENTICAL, LINEAR, Weight, translate

WEIGHTS_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

_LARGEST = 100_000_000  # bytes of the file, which has 96 MB
_EPSILON = 1e-3  # of every batch normalization
_OUTPUT = "fc"


def weights_file(
    path: str | None = None, *, url: str = WEIGHTS_URL, sha256: str = WEIGHTS_SHA256
) -> Path:
    """Return the file of the published weights, downloading it (96 MB) if it is missing.

    Args:
        path: the file, which may hold other weights. None or "" for the user's cache,
            $XDG_CACHE_HOME/scoresde or ~/.cache/scoresde, and the download if it is not there.
        url: the address; its last part is the file's name in the cache.
        sha256: of the file in the cache.

    Raises:
        FileNotFoundError: if `path` is not a file.
        ConnectionError: if it cannot be downloaded.
        OSError: if it cannot be written.
        ValueError: if the cached or downloaded file has another SHA-256.
    """
    if path:
        given = local_input(path)
        if not given.is_file():
            raise FileNotFoundError(
                f"config.eval.inception_weights={path!r} is not a file; download it from {url}, or "
                "set the field to '' for an automatic download"
            )
        return given
    cached = cache_folder() / url.rpartition("/")[-1]
    remedy = (
        f"download {url} by hand, put it at {cached}, or set config.eval.inception_weights to "
        "where it is"
    )
    if not cached.exists():
        download(url, cached, sha256=sha256, max_bytes=_LARGEST, remedy=remedy)
        return cached
    require_file(cached, str(cached))
    if (found := sha256_of(cached)) != sha256:
        raise ValueError(
            f"{cached} is damaged: its sha256 is {found}, expected {sha256}; delete it and run "
            "again to download it"
        )
    return cached


def template() -> dict[str, Any]:
    """Return the shapes of the network's parameters, as nested dicts."""
    images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    return jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]


def _layers(shapes: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield the path of every layer, and its kernel's shape."""
    for name, inside in shapes.items():
        if "kernel" in inside:
            yield f"{path}{name}", tuple(inside["kernel"].shape)
        else:
            yield from _layers(inside, f"{path}{name}/")


def _rules(path: str, kernel: tuple[int, ...]) -> list[Weight]:
    """Return the rules for one layer's tensors, before they become one convolution."""
    theirs = path.replace("/", ".")
    if path == _OUTPUT:
        return [
            LINEAR.weight(f"{path}/kernel", f"{theirs}.weight"),
            IDENTICAL.weight(f"{path}/bias", f"{theirs}.bias"),
        ]
    norm = {
        "scale": "weight",
        "offset": "bias",
        "mean": "running_mean",
        "variance": "running_var",
    }
    return [
        (CONV if len(kernel) == 4 else CONV_1X1).weight(f"{path}/kernel", f"{theirs}.conv.weight"),
        *(IDENTICAL.weight(f"{path}/{ours}", f"{theirs}.bn.{name}") for ours, name in norm.items()),
    ]


def folded(
    kernel: Float64[np.ndarray, "*taps features"],
    scale: Float64[np.ndarray, "features"],
    offset: Float64[np.ndarray, "features"],
    mean: Float64[np.ndarray, "features"],
    variance: Float64[np.ndarray, "features"],
) -> dict[str, Float32[np.ndarray, "..."]]:
    """Return the kernel K' and the bias b of the module docstring."""
    factor = scale / np.sqrt(variance + _EPSILON)
    return {
        "kernel": (kernel * factor).astype(np.float32),
        "bias": (offset - mean * factor).astype(np.float32),
    }


def parameters(tensors: Mapping[str, Any], *, source: str = "the checkpoint") -> dict[str, Any]:
    """Return the parameters of `Inception` from the file's tensors, by name.

    Raises:
        ValueError: if tensors are missing, surplus, of the wrong shape or not finite.
    """
    shapes = template()
    rules = [rule for path, kernel in _layers(shapes) for rule in _rules(path, kernel)]
    # The shapes of their tensors in our layout: a vector is as long as the layer has outputs.
    wanted: dict[str, Any] = {}
    for path, kernel in _layers(shapes):
        node = wanted
        for name in path.split("/"):
            node = node.setdefault(name, {})
        for rule in _rules(path, kernel):
            name = rule.ours.rpartition("/")[-1]
            shape = kernel if name == "kernel" else kernel[-1:]
            node[name] = jax.ShapeDtypeStruct(shape, np.float32)
    found = translate(
        rules,
        wanted,
        tensors,
        unused=("*.bn.num_batches_tracked",),
        source=source,
        remedy=f"Get the file from {WEIGHTS_URL}",
    )
    return _folded_layers(found)


def _folded_layers(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return the same layers, each with a kernel and a bias."""
    if "variance" in tree:
        return folded(**{name: value.astype(np.float64) for name, value in tree.items()})
    if "kernel" in tree:
        return dict(tree)
    return {name: _folded_layers(inside) for name, inside in tree.items()}


@functools.partial(jax.jit, static_argnames="resize")
def activations(
    params: Mapping[str, Any],
    images: UInt8[jax.Array, "batch height width channels"],
    *,
    resize: str = "tf1",
) -> Activations:
    """Return the network's outputs for images 0..255, with parameters from `parameters`."""
    outputs: Any = Inception().apply({"params": params}, preprocess(images, resize=resize))
    return outputs


def inception_features(path: Path, *, resize: str = "tf1", batch_size: int = 32) -> Extractor:
    """Return the extractor with the weights in a file.

    Features (n, 2048) are those of the last pooling. Probabilities (n, 1008) are those of the
    Inception Score, without the last layer's bias. Images (n, h, w, c) have any size, gray or RGB.
    Batches have one size, so that the network compiles once per image size and an image's features
    do not depend on the number of images.

    Args:
        path: the file, as from `weights_file`.
        resize: how images become 299x299, a name in `network.RECIPES`.
        batch_size: images at a time.

    Raises:
        ValueError: if the file cannot be read or holds another network, or `resize` is unknown; the
            extractor raises it for images without 1 or 3 channels.
    """
    require_choice("resize", resize, RECIPES)
    require_in("batch_size", batch_size, "[1, inf)")
    tensors = read.read(path)
    if not isinstance(tensors, Mapping):
        raise ValueError(f"{path} holds a {type(tensors).__name__}, not tensors by name")
    params = jax.device_put(parameters(tensors, source=str(path)))

    def compute(images: Images) -> Extracted:
        count = len(images)
        features = np.empty((count, FEATURES), np.float32)
        probabilities = np.empty((count, CLASSES), np.float32)
        for start in range(0, count, batch_size):
            batch = images[start : start + batch_size]
            missing = batch_size - len(batch)
            padded = np.pad(batch, [(0, missing), (0, 0), (0, 0), (0, 0)])
            found = activations(params, padded, resize=resize)
            rows = slice(start, start + len(batch))
            features[rows] = found.features[: len(batch)]
            probabilities[rows] = jax.nn.softmax(found.scores)[: len(batch)]
        return Extracted(features, probabilities)

    return Extractor("inception", f"{sha256_of(path)[:16]}-{resize}", compute)
