"""Reference statistics: kept, computed again where they do not fit, refused where named."""

import dataclasses

import jax
import numpy as np
import pytest
from command_line import TINY, configuration, write_images

from errors import ConfigError
from evaluation import references
from experiment.build import build
from metrics.features import PIXELS, Extracted, Extractor
from metrics.statistics_files import load, save


@pytest.fixture
def experiment(tmp_path):
    images = write_images(tmp_path / "images.npz", 32, 12)
    return build(configuration(TINY | {"data.name": str(images)}))


def test_statistics_are_those_of_the_images_and_kept(experiment, tmp_path):
    found = references.reference_of_split(experiment, "train", PIXELS, tmp_path)
    pixels = experiment.data.splits.train.reshape(32, -1) / 255
    np.testing.assert_allclose(found.statistics.mean, pixels.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(found.statistics.covariance, np.cov(pixels.T), atol=1e-7)
    file = tmp_path / "images-train-pixels.npz"
    before = file.stat().st_mtime_ns
    again = references.reference_of_split(experiment, "train", PIXELS, tmp_path)
    np.testing.assert_array_equal(again.statistics.covariance, found.statistics.covariance)
    assert file.stat().st_mtime_ns == before


@pytest.mark.slow
def test_statistics_and_evaluated_batches_of_streamed_images_are_those_in_memory(tmp_path):
    images = write_images(tmp_path / "images.npz", 32, 12)
    found = []
    for memory_gb in (0.0, 1.0):
        fields = {"data.name": str(images), "data.memory_gb": memory_gb}
        built = build(configuration(TINY | fields))
        data = built.data
        assert isinstance(data.splits.train, np.ndarray) == bool(memory_gb)
        rows = jax.numpy.arange(3, 7)
        arrays = [
            data.batch(data.splits.test, rows, seed=0, draw=1),
            *data.dequantized(data.splits.test, rows, seed=0, draw=1),
        ]
        for split in ("train", "test"):
            made = references.compute_statistics(built, split, PIXELS, tmp_path / "made.npz")
            arrays += [made.mean, made.covariance]
        found.append(arrays)
    for streamed, held in zip(*found, strict=True):
        np.testing.assert_array_equal(streamed, held)


def test_kept_statistics_that_do_not_fit_are_computed_again(experiment, tmp_path):
    file = tmp_path / "images-train-pixels.npz"
    wrong = references.compute_statistics(experiment, "test", PIXELS, file)
    found = references.reference_of_split(experiment, "train", PIXELS, tmp_path)
    assert found.statistics.count == 32 != wrong.count
    file.write_bytes(b"damaged")
    assert (
        references.reference_of_split(experiment, "train", PIXELS, tmp_path).statistics.count == 32
    )


def test_named_statistics_are_verified_or_marked(experiment, tmp_path):
    file = tmp_path / "named.npz"
    made = references.compute_statistics(experiment, "train", PIXELS, file)
    assert references.reference_of_file(experiment, PIXELS, file).origin["verified"]
    foreign = tmp_path / "foreign.npz"
    np.savez(foreign, mu=made.mean, sigma=made.covariance)
    given = references.reference_of_file(experiment, PIXELS, foreign)
    assert not given.origin["verified"]
    np.testing.assert_array_equal(given.statistics.mean, made.mean)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "0" * 64}, "fingerprint="),
        ({"image_size": 9}, "image_size=9"),
        ({"extractor_digest": "else"}, "extractor_digest='else'"),
    ],
)
def test_named_statistics_that_do_not_fit_are_refused(experiment, tmp_path, change, message):
    file = tmp_path / "named.npz"
    statistics = references.compute_statistics(experiment, "train", PIXELS, file)
    _, provenance = load(file)
    save(file, statistics, dataclasses.replace(provenance, **change))
    with pytest.raises(ConfigError, match=rf"config\.eval\.reference=.*{message}.*--mode=stats"):
        references.reference_of_file(experiment, PIXELS, file)


def test_features_of_another_number_are_refused(experiment, tmp_path):
    file = tmp_path / "other.npz"
    np.savez(file, mu=np.zeros(3), sigma=np.eye(3))
    with pytest.raises(ConfigError, match="features differ in number: 3 and 64"):
        references.reference_of_file(experiment, PIXELS, file)
    with pytest.raises(ConfigError, match="there are no statistics"):
        references.reference_of_file(experiment, PIXELS, tmp_path / "absent.npz")


def test_extractor_refuses_other_images_and_reports_nan():
    with pytest.raises((ValueError, TypeError), match="images"):
        PIXELS(np.zeros((2, 2, 1), np.uint8))
    broken = Extractor("broken", "", lambda images: Extracted(np.full((2, 3), np.nan), None))
    with pytest.raises(ValueError, match="of 2 of 2 images are not finite; check"):
        broken(np.zeros((2, 2, 2, 1), np.uint8))
