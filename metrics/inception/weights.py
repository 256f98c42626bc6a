"""The Inception-v3 of the Frechet Inception Distance: its published weights, and features by them.

The file is a port of the graph for TensorFlow of 2015-12-05, made for PyTorch. Its layer of kernel
K and batch normalization (scale g, offset o, mean m, variance v, epsilon 1e-3) is one convolution
here (`models/inception.py`):

    relu(g (K * x - m) / sqrt(v + 1e-3) + o) = relu(K' * x + b)
    K' = K g / sqrt(v + 1e-3)         b = o - m g / sqrt(v + 1e-3)

computed in float64. Layers have the file's names; the last one, "fc", has a kernel and a bias.
"""

import functools
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from files.downloads import download
from files.writing import sha256_of
from metrics.features import Extracted, Extractor
from metrics.inception.network import (
    CLASSES,
    FEATURES,
    IMAGE_SIZE,
    Activations,
    Inception,
    preprocess,
    recipe,
)
from published.formats import read
from published.mapping import CONV, CONV_1X1, IDENTICAL, LINEAR, Weight, translate

WEIGHTS_URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
WEIGHTS_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

_EPSILON = 1e-3  # of every batch normalization
_OUTPUT = "fc"


# The file.


def weights_file(
    path: str | None = None, *, url: str = WEIGHTS_URL, sha256: str = WEIGHTS_SHA256
) -> Path:
    """The file of the published weights, downloaded (96 MB) unless it is here.

    Args:
        path: where it is; None or "" means the user's cache, $XDG_CACHE_HOME/scoresde, by default
            ~/.cache/scoresde, and the download if it is not there.
        url: where it is downloaded from; its last part is the file's name in the cache.
        sha256: of the file. One named by `path` may be another, such as one of other weights.

    Raises:
        FileNotFoundError: `path` is not a file.
        ConnectionError, OSError: it cannot be downloaded, or not be written.
        ValueError: what is in the cache, or was downloaded, is not this file.
    """
    if path:
        if not Path(path).expanduser().is_file():
            raise FileNotFoundError(
                f"config.eval.inception_weights={path!r} is not a file; download it from {url}, or "
                "set it to '' to have that done"
            )
        return Path(path).expanduser()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    cached = cache / "scoresde" / url.rpartition("/")[-1]
    remedy = (
        f"download {url} by hand, put it at {cached}, or set config.eval.inception_weights to "
        "where it is"
    )
    if not cached.exists():
        download(url, cached, sha256=sha256, remedy=remedy)
    elif (found := sha256_of(cached)) != sha256:
        raise ValueError(
            f"{cached} is damaged: its sha256 is {found}, expected {sha256}; delete it to have it "
            "downloaded again"
        )
    return cached


# From its tensors to our parameters.


def template() -> dict[str, Any]:
    """The network's parameters as shapes, nested dicts."""
    images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
    return jax.eval_shape(Inception().init, jax.random.key(0), images)["params"]


def _layers(shapes: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, tuple[int, ...]]]:
    """The path of every layer, and its kernel's shape."""
    for name, inside in shapes.items():
        if "kernel" in inside:
            yield f"{path}{name}", tuple(inside["kernel"].shape)
        else:
            yield from _layers(inside, f"{path}{name}/")


def _rules(path: str, kernel: tuple[int, ...]) -> list[Weight]:
    """The rules for the tensors of one layer, as they are before they become one convolution."""
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
    """The kernel K' and bias b of the module docstring, of a normalization without training."""
    factor = scale / np.sqrt(variance + _EPSILON)
    return {
        "kernel": (kernel * factor).astype(np.float32),
        "bias": (offset - mean * factor).astype(np.float32),
    }


def parameters(tensors: Mapping[str, Any], *, source: str = "the checkpoint") -> dict[str, Any]:
    """The parameters of `Inception` from the tensors of the file, by name.

    Raises:
        ValueError: in one line, which tensors are missing, surplus, of the wrong shape or not
            finite.
    """
    shapes = template()
    rules = [rule for path, kernel in _layers(shapes) for rule in _rules(path, kernel)]
    # The shapes of theirs, in our layout: a vector is as long as the layer has outputs.
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
    """The same layers, each a kernel and a bias."""
    if "variance" in tree:
        return folded(**{name: value.astype(np.float64) for name, value in tree.items()})
    if "kernel" in tree:
        return dict(tree)
    return {name: _folded_layers(inside) for name, inside in tree.items()}


# Features.


@functools.partial(jax.jit, static_argnames="resize")
def activations(
    params: Mapping[str, Any],
    images: UInt8[jax.Array, "batch height width channels"],
    *,
    resize: str = "tf1",
) -> Activations:
    """What the network makes of images 0..255, by parameters as `parameters` returns them."""
    return Inception().apply({"params": params}, preprocess(images, resize=resize))


def inception_features(path: Path, *, resize: str = "tf1", batch_size: int = 32) -> Extractor:
    """Inception's features and class probabilities of uint8 images, by the weights in a file.

    Features are those of the last pooling, (n, 2048); probabilities (n, 1008) are those of the
    Inception Score, without the last layer's bias. Images (n, h, w, c) are of any size, grey or
    RGB. They are computed in batches of one size, so that a network is compiled once for each size
    of images, and that an image's features do not depend on how many others there are.

    Args:
        path: of the file, as `weights_file` finds it.
        resize: how images become 299x299, a name in `models.inception.RECIPES`.
        batch_size: images at a time.

    Raises:
        ValueError: the file cannot be read or is of another network; no such `resize`; when
            called, images of neither 1 nor 3 channels.
    """
    recipe(resize)  # fails before anything is read
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size} is not positive; 32 is the default")
    tensors = read.read(path)
    if not isinstance(tensors, Mapping):
        raise ValueError(f"{path} holds a {type(tensors).__name__}, not tensors by name")
    params = jax.device_put(parameters(tensors, source=str(path)))

    def compute(images: UInt8[np.ndarray, "batch h w c"]) -> Extracted:
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
