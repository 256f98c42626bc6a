"""Batches: every image once per epoch, and random numbers by counters instead of state."""

import math

import numpy as np
import pytest
from stored_images import one_line, random_images

from data import batches as module
from data.batches import TrainingBatches
from data.scaling import ImageScaler, Quantizer


def batches(images, **changes):
    settings = {"batch_size": 8, "seed": 3, "random_flip": True, "dequantization": "uniform"}
    return TrainingBatches(images=images, **{**settings, **changes})


@pytest.mark.parametrize("batch_size", [1, 7, 10, 64])
def test_every_epoch_holds_every_image_once_and_in_another_order(batch_size):
    count, epochs = 10, 14
    stream = batches(random_images(count), batch_size=batch_size)
    steps = -(-count * epochs // batch_size)
    order = np.concatenate([stream.indices(step) for step in range(steps)])
    order = order[: count * epochs].reshape(epochs, count)
    np.testing.assert_array_equal(np.sort(order, axis=1), np.tile(range(count), (epochs, 1)))
    assert len(np.unique(order, axis=0)) == epochs


def test_a_batch_depends_on_seed_and_step_alone():
    images = random_images(30)
    walked = [batches(images).at(step) for step in range(12)]
    for step in (11, 0, 5, 11):
        module._permutation.cache_clear()
        np.testing.assert_array_equal(batches(images).at(step), walked[step])
    assert not np.array_equal(batches(images, seed=4).at(5), walked[5])


@pytest.mark.parametrize("name", ["uniform", "none"])
def test_the_rows_of_all_hosts_are_the_whole_batch(name):
    stream = batches(random_images(30, size=3), dequantization=name)  # 27 numbers: a ragged word
    parts = [stream.at(4, slice(k, k + 2)) for k in range(0, 8, 2)]
    np.testing.assert_array_equal(np.concatenate(parts), stream.at(4))
    assert stream.at(4, slice(8, 8)).shape == (0, 3, 3, 3)


def test_batches_hold_the_images_flipped_half_the_time():
    images = random_images(200)
    kept = images.copy()
    stream = batches(images, batch_size=500, dequantization="none", quantizer=Quantizer())
    flips = 0
    for step in range(4):
        x = stream.at(step)
        stored = Quantizer().quantize(stream.scaler.inverse(x))
        source = images[stream.indices(step)]
        upright = (stored == source).all(axis=(1, 2, 3))
        mirrored = (stored == source[:, :, ::-1]).all(axis=(1, 2, 3))
        assert (upright ^ mirrored).all()
        flips += mirrored.sum()
    assert abs(flips / 2000 - 0.5) < 5 * 0.5 / math.sqrt(2000)  # five standard deviations
    np.testing.assert_array_equal(images, kept)
    plain = batches(images, dequantization="none", random_flip=False)
    np.testing.assert_array_equal(
        Quantizer().quantize(plain.scaler.inverse(plain.at(3))), images[plain.indices(3)]
    )


def test_dequantization_noise_is_uniform_within_the_bin_of_its_level():
    images = np.full((50, 8, 8, 3), 255, np.uint8)
    stream = batches(images, batch_size=400, scaler=ImageScaler(low=-1.0, high=1.0))
    x = stream.at(2)
    assert x.dtype == np.float32
    unit = stream.scaler.inverse(x)
    assert unit.max() < 1
    np.testing.assert_array_equal(Quantizer().quantize(unit, dequantized=True), 255)
    noise = unit * 256 - 255
    histogram = np.histogram(noise, bins=16, range=(0, 1))[0]
    expected = noise.size / 16
    assert ((histogram - expected) ** 2 / expected).sum() < 60  # chi-squared, 15 degrees: p < 1e-6
    neighbors = np.corrcoef(noise[:-1].ravel(), noise[1:].ravel())[0, 1]
    assert abs(neighbors) < 5 / math.sqrt(noise.size)
    assert not np.array_equal(x, stream.at(3))


def test_noise_of_a_test_image_does_not_depend_on_its_batch():
    images = random_images(20, size=3)
    settings = {"seed": 1, "quantizer": Quantizer(), "scaler": ImageScaler(low=0.0)}
    whole = module.test_batch(images, range(20), draw=0, **settings)
    for chosen in ([7], [19, 0, 7], []):
        part = module.test_batch(images, chosen, draw=0, **settings)
        np.testing.assert_array_equal(part, whole[chosen])
    again = module.test_batch(images, range(20), draw=1, **settings)
    assert (again != whole).mean() > 0.9
    for x in (whole, again):
        np.testing.assert_array_equal(Quantizer().quantize(x, dequantized=True), images)
    clean = module.test_batch(images, [3], draw=0, dequantization="none", **settings)
    np.testing.assert_array_equal(Quantizer().quantize(clean), images[[3]])
    with pytest.raises(IndexError, match=r"0\.\.19"):
        module.test_batch(images, [-1], draw=0, **settings)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: batches(random_images(0)), "empty"),
        (lambda: batches(random_images(3), batch_size=0), r"config\.training\.batch_size=0"),
        (lambda: batches(random_images(3), seed=-1), r"config\.seed=-1"),
        (lambda: batches(random_images(3), dequantization="normal"), "'normal' is unknown; choose"),
        (lambda: batches(random_images(3)).at(-1), "step=-1"),
        (lambda: batches(random_images(3)).at(0, slice(0, 8, 2)), "stride of 1"),
        (lambda: batches(random_images(3)).labels_at(0), "no labels"),
    ],
)
def test_invalid_batches_are_refused(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert one_line(error)
