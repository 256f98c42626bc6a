"""Weights and images that the fixtures' generators drew too, for files that hold names alone."""

import zlib
from pathlib import Path

import numpy as np

DATA = Path(__file__).parent / "fixtures" / "published"
SIZE, TIMES = 8, np.array([0.25, 0.5], np.float32)
TOLERANCE = 1e-5  # of the largest number
LABEL = np.array([249.75, 499.5], np.float32)  # timesteps of OpenAI


def drawn(shapes):
    """Weights for names and shapes; the fixtures' generator had the same function."""
    return {name: _drawn(name, tuple(shape)) for name, shape in shapes.items()}


def _drawn(name, shape):
    u = np.random.default_rng(zlib.crc32(name.encode())).uniform(-1.0, 1.0, shape)
    if name.endswith("resample_filter"):
        taps = np.array([1.0, 3.0, 3.0, 1.0] if shape[-1] == 4 else [1.0, 1.0])
        u = (np.outer(taps, taps) / taps.sum() ** 2)[None, None]
    elif len(shape) > 1:
        u = u * np.sqrt(3.0 / np.prod(shape[1:]))
    elif name.endswith(".weight") and "time_proj" not in name:
        u = 1.0 + 0.5 * u
    elif name.endswith(".bias"):
        u = 0.5 * u
    return u.astype(np.float32)


def images():
    shape = (2, SIZE, SIZE, 3)
    return np.random.default_rng(SIZE).uniform(-1.0, 1.0, shape).astype(np.float32)
