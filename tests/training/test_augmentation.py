"""Augmentation against EDM's own pipe, and what makes it non-leaky and repeatable.

tests/fixtures/augmentation.npz has six images of 16x20 that `AugmentPipe` of
https://github.com/NVlabs/edm made in float64, the taps of its filter too, with the multipliers of
train.py and p = 0.8: the random parameters, the outputs and the labels. Normal numbers were halved,
so that its padding, at most the image's size, is enough. Beyond, it has zeros, ours mirrors.
"""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.augmentation import _SYMLET, LABELS, Augmentation, Transform
from training.parallel import DataParallel

FIXTURE = Path(__file__).parent.parent / "fixtures" / "augmentation.npz"
ALWAYS = Augmentation(probability=1.0)
KINDS = ("x_flip", "y_flip", "scale", "rotation", "anisotropy", "translation")
NONE = Augmentation(probability=1.0, **dict.fromkeys(KINDS, 0) | dict.fromkeys(KINDS[:2], False))
COLUMNS = dict(zip(KINDS, ([0], [1], [2], [3, 4], [5, 6], [7, 8]), strict=True))


def images(batch, height, width, seed=5):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, height, width, 1))


def transform(batch=1, **fields):
    zero = dict.fromkeys(Transform._fields[:-1], np.zeros(batch)) | {"shift": np.zeros((batch, 2))}
    return Transform(**jax.tree.map(jnp.asarray, zero | fields))


def labels_of(augmentation, count):
    """The labels of `count` images."""
    draw = functools.partial(augmentation.draw, dtype=np.float32)
    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(3), count)).labels)


def apply(augmentation, x, parameters):
    return jax.jit(jax.vmap(augmentation.apply))(jnp.asarray(x), parameters)


def test_images_and_labels_are_those_of_edm():
    with jax.enable_x64(True), np.load(FIXTURE) as theirs:
        parameters = Transform(*(jnp.asarray(theirs[name]) for name in Transform._fields))
        x = np.moveaxis(np.random.default_rng(7).uniform(-1, 1, (6, 1, 16, 20)), 1, -1)
        np.testing.assert_allclose(apply(ALWAYS, x, parameters), theirs["y"], rtol=0, atol=1e-12)
        np.testing.assert_allclose(
            parameters.labels, theirs["labels"], atol=1e-6
        )  # theirs: float32


def test_filter_is_the_orthogonal_wavelet_with_six_vanishing_moments():
    taps, index = np.array(_SYMLET), np.arange(12)
    shifted = [taps[2 * k :] @ taps[: 12 - 2 * k] for k in range(6)]
    np.testing.assert_allclose(shifted, np.eye(6)[0], atol=1e-11)
    assert math.isclose(taps.sum(), math.sqrt(2), rel_tol=1e-11)
    moments = [(taps * (-1.0) ** index) @ (index - 5.5) ** k for k in range(6)]
    np.testing.assert_allclose(moments, np.zeros(6), atol=1e-7)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8, 8)])
def test_no_transform_changes_no_pixel(size):
    with jax.enable_x64(True):
        x = images(2, *size)
        np.testing.assert_allclose(apply(ALWAYS, x, transform(2)), x, atol=1e-10)


def test_flips_move_whole_pixels():
    x = images(3, 6, 6)
    flips = transform(3, x_flip=np.array([1.0, 0, 1]), y_flip=np.array([0.0, 1, 1]))
    expected = np.stack([x[0][:, ::-1], x[1][::-1], x[2][::-1, ::-1]])
    np.testing.assert_allclose(apply(ALWAYS, x, flips), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"shift": np.array([[1.5, -0.75]])}, lambda x, y: (x - 3, y + 1.5)),
        ({"angle": np.array([math.pi / 2])}, lambda x, y: (-y, x)),
        ({"scale": np.array([5.0])}, lambda x, y: (x / 2, y / 2)),
        ({"stretch": np.array([5.0])}, lambda x, y: (x / 2, y * 2)),
        (
            {"stretch": np.array([5.0]), "direction": np.array([math.pi / 2])},
            lambda x, y: (x * 2, y / 2),
        ),
    ],
    ids=["shift", "angle", "scale", "stretch", "direction"],
)
def test_each_parameter_moves_a_smooth_image_as_it_says(fields, where):
    """A plane wave that is smooth on the scale of pixels, away from the mirrors at its ends."""

    def wave(x, y):
        return np.cos(0.21 * x + 0.13 * y + 0.5)

    axis = np.arange(16) - 7.5
    x, y = np.meshgrid(axis, axis)
    found = apply(ALWAYS, wave(x, y)[None, ..., None], transform(**fields))[0, ..., 0]
    inside = (slice(6, 10),) * 2
    np.testing.assert_allclose(
        found[inside], wave(*where(x, y))[inside], atol=0.03
    )  # the filter is not quite even


@pytest.mark.slow
def test_labels_are_zero_exactly_where_a_kind_is_absent():
    for kind in KINDS:
        one = dataclasses.replace(NONE, **{kind: getattr(ALWAYS, kind)})
        labels = labels_of(one, 16)
        others = [column for column in range(LABELS) if column not in COLUMNS[kind]]
        assert np.all(labels[:, others] == 0)
        assert np.any(labels[:, COLUMNS[kind]] != 0, axis=0).all()


@pytest.mark.slow
def test_kinds_are_as_frequent_as_they_should_be():
    """Also the distributions of the parameters, by their second moments."""
    count = 20_000
    labels = labels_of(Augmentation(probability=0.12), count)
    frequencies = (labels[:, [0, 1, 2, 4, 5, 7]] != 0).mean(axis=0)
    expected = np.array([0.5, 0.06, 0.12, 0.12, 0.12, 0.12])
    errors = np.abs(frequencies - expected) / np.sqrt(expected * (1 - expected) / count)
    assert errors.max() < 4.5
    assert np.all((labels[:, 7] != 0) == (labels[:, 8] != 0)), "one draw for both axes"
    chosen = labels[labels[:, 2] != 0, 2]
    assert abs(chosen.std() - 1) < 4.5 * math.sqrt(0.5 / len(chosen))
    turned = labels[labels[:, 4] != 0, 4]
    assert abs((turned**2).mean() - 0.5) < 4.5 * math.sqrt(0.125 / len(turned))
    stretched = labels[labels[:, 5] != 0]
    assert abs((stretched[:, 6] != 0).mean() - 0.5) < 4.5 * math.sqrt(0.25 / len(stretched))


@pytest.mark.slow
def test_an_image_depends_on_its_key_and_place_alone():
    x = jnp.asarray(images(8, 8, 8), jnp.float32)
    augment, key = jax.jit(ALWAYS), jax.random.key(1)
    alone, labels = augment(key, x)
    parallel = DataParallel.over_all_devices()
    split, split_labels = augment(key, parallel.put_batch(np.asarray(x)))
    assert len(split.sharding.device_set) == parallel.devices == 4
    np.testing.assert_allclose(split, alone, atol=1e-5)
    np.testing.assert_array_equal(split_labels, labels)
    np.testing.assert_allclose(augment(key, x[:4])[0], alone[:4], atol=1e-5)
    assert np.any(augment(jax.random.key(2), x)[1] != labels)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"probability": 1.5}, r"probability=1\.5 must lie in \[0, 1\]"),
        ({"rotation": 2.0}, r"rotation=2\.0 must lie in \[0, 1\]"),
        ({"scale": -0.1}, r"scale=-0\.1 must be at least 0"),
        ({"translation": math.inf}, "translation=inf must be at least 0 and finite"),
    ],
)
def test_invalid_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Augmentation(**fields)
