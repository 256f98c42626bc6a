"""Statistics come back as they were written, from other projects' files too, or not at all."""

import dataclasses
import io
import json
import pickle
import re
import zipfile

import numpy as np
import pytest

from metrics import statistics_files
from metrics.frechet import Statistics
from metrics.statistics_files import Provenance, check, load, save

REMEDY = "write statistics anew with --mode=stats"
FEATURES = np.random.default_rng(0).normal(size=(50, 4))
STATISTICS = Statistics(50, FEATURES.mean(axis=0), np.cov(FEATURES.T))
PROVENANCE = Provenance(
    dataset="digits",
    split="train",
    image_size=8,
    resize="none",
    count=50,
    fingerprint="0a",
    extractor="pixels",
    extractor_digest="pixels",
)


def arrays_of(file):
    with np.load(file) as arrays:
        return dict(arrays)


def assert_equal(ours, theirs):
    np.testing.assert_allclose(ours.mean, theirs.mean, rtol=1e-12)
    np.testing.assert_allclose(ours.covariance, theirs.covariance, rtol=1e-10)


def test_what_was_saved_comes_back_and_equals_give_equal_bytes(tmp_path):
    first, second = tmp_path / "deep" / "a.npz", tmp_path / "b"  # the name is kept as it is
    for file in (first, second):
        save(file, STATISTICS, PROVENANCE)
    statistics, provenance = load(first)
    assert (statistics.count, provenance) == (50, PROVENANCE)
    np.testing.assert_array_equal(statistics.mean, STATISTICS.mean)
    np.testing.assert_array_equal(statistics.covariance, STATISTICS.covariance)
    assert first.read_bytes() == second.read_bytes()
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["a.npz", "b", "deep"]


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "a.npz"
    save(file, STATISTICS, PROVENANCE)
    before = file.read_bytes()

    def full(stream, **_):
        stream.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(statistics_files.np, "savez", full)
    with pytest.raises(OSError, match="no space"):
        save(file, STATISTICS, PROVENANCE)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_counts_must_agree(tmp_path):
    with pytest.raises(ValueError, match="count=49 of the provenance, but 50 of the statistics"):
        save(tmp_path / "a.npz", STATISTICS, dataclasses.replace(PROVENANCE, count=49))


def test_our_files_are_read_as_pytorch_fid_and_edm_read_them(tmp_path):
    """Both take arrays["mu"] and arrays["sigma"]."""
    save(tmp_path / "a.npz", STATISTICS, PROVENANCE)
    arrays = arrays_of(tmp_path / "a.npz")
    np.testing.assert_array_equal(arrays["mu"], STATISTICS.mean)
    np.testing.assert_array_equal(arrays["sigma"], STATISTICS.covariance)


OTHERS = {
    "dataset": "mnist",
    "split": "test",
    "image_size": 32,
    "resize": "pad",
    "count": 49,
    "fingerprint": "0b",
    "extractor": "inception",
    "extractor_digest": "other weights",
}


@pytest.mark.parametrize("field", OTHERS)
def test_statistics_of_something_else_are_refused(field):
    wanted = dataclasses.replace(PROVENANCE, **{field: OTHERS[field]})
    has = getattr(PROVENANCE, field)
    message = f"{field}={has!r} of the statistics is not {OTHERS[field]!r}, .*; {REMEDY}"
    with pytest.raises(ValueError, match=f"^{message}$"):
        check(PROVENANCE, wanted)
    check(wanted, wanted)


def test_every_field_of_the_provenance_counts():
    assert [field.name for field in dataclasses.fields(Provenance)] == list(OTHERS)


def test_the_first_field_that_differs_is_named():
    wanted = dataclasses.replace(PROVENANCE, dataset="mnist", fingerprint="0b")
    with pytest.raises(ValueError, match=r"dataset='digits' .* 'mnist'"):
        check(PROVENANCE, wanted)


@pytest.mark.parametrize("extra", [{}, {"mu_s": np.zeros(3), "sigma_s": np.eye(3)}])
@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_mu_and_sigma_of_pytorch_fid_edm_and_guided_diffusion(tmp_path, writer, extra):
    file = tmp_path / "cifar10-32x32.npz"
    writer(file, mu=STATISTICS.mean, sigma=STATISTICS.covariance, **extra)
    statistics, provenance = load(file)
    assert provenance is None
    assert statistics.count is None
    assert_equal(statistics, STATISTICS)


@pytest.mark.parametrize("writer", [np.savez, np.savez_compressed])
def test_features_of_score_sde_are_read_row_by_row(tmp_path, monkeypatch, writer):
    file = tmp_path / "cifar10_stats.npz"
    features = FEATURES.astype(np.float32)
    writer(file, pool_3=features, logits=np.zeros((50, 8), np.float32))
    monkeypatch.setattr(statistics_files, "_ROWS", 7)
    statistics, provenance = load(file)
    assert provenance is None
    assert statistics.count == 50
    assert_equal(
        statistics, Statistics(50, features.mean(axis=0, dtype=np.float64), np.cov(features.T))
    )


def test_float32_statistics_are_symmetric_afterwards(tmp_path):
    file, noise = tmp_path / "a.npz", np.triu(np.full((4, 4), 1e-7), 1)
    np.savez(file, mu=STATISTICS.mean, sigma=(STATISTICS.covariance + noise).astype(np.float32))
    statistics, _ = load(file)
    assert statistics.covariance.dtype == np.float64
    np.testing.assert_array_equal(statistics.covariance, statistics.covariance.T)


def refused(file, message):
    """One line with the file's name, the problem and the remedy."""
    with pytest.raises(ValueError, match=message) as error:
        load(file)
    text = str(error.value)
    assert str(file) in text
    assert REMEDY in text
    assert "\n" not in text


def test_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"a.npz: there are no statistics; {REMEDY}"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_truncated_files(tmp_path, share):
    file = tmp_path / "a.npz"
    save(file, STATISTICS, PROVENANCE)
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    refused(file, "not an .npz archive|damaged or incomplete")


def test_a_flipped_byte_anywhere_is_an_error_or_harmless(tmp_path):
    file = tmp_path / "a.npz"
    save(file, STATISTICS, PROVENANCE)
    whole, errors = file.read_bytes(), []
    for position in range(0, len(whole), 17):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            statistics, provenance = load(file)
        except ValueError as error:
            errors.append(str(error))
        else:  # the archive's dates and the like
            assert provenance in (PROVENANCE, None)
            assert_equal(statistics, STATISTICS)
    assert len(errors) > len(whole) / 17 / 2
    assert all(str(file) in error for error in errors)


def test_a_folder_and_a_bare_array(tmp_path):
    refused(tmp_path, "it is a folder instead of a file")
    np.save(tmp_path / "a.npy", FEATURES)
    refused(tmp_path / "a.npy", "a single array, .npy")


def test_pickles_are_not_run(tmp_path):
    file = tmp_path / "img512.pkl"
    file.write_bytes(pickle.dumps({"fid": {"mu": STATISTICS.mean}}))
    refused(file, re.escape("is a pickle, which may run code") + r".*numpy\.savez")
    file = tmp_path / "a.npz"
    np.savez(file, mu=STATISTICS.mean, sigma=np.array({"a": 1}, dtype=object))
    refused(file, "'sigma' holds objects")


def changed(**arrays):
    base = {"mu": STATISTICS.mean, "sigma": STATISTICS.covariance}
    return {name: array for name, array in (base | arrays).items() if array is not None}


def tilted():
    covariance = STATISTICS.covariance.copy()
    covariance[1, 2] += 0.01
    return covariance


def entry(array, value):
    array = array.copy()
    array.flat[-1] = value
    return array


def origin(**fields):
    values = {"format": 1} | dataclasses.asdict(PROVENANCE) | fields
    return np.array(json.dumps({name: v for name, v in values.items() if v is not None}))


OURS = {"count": np.array(50)}
WRONG = {
    "no mu": (changed(mu=None), "has no mu among 'sigma'"),
    "neither": ({"images": FEATURES}, "has no mu and sigma among 'images'"),
    "empty": ({}, "has no mu and sigma among nothing"),
    "shapes": (changed(sigma=np.eye(3)), r"has mu \(4,\) and sigma \(3, 3\)"),
    "axes": (changed(mu=FEATURES), r"has mu \(50, 4\) and sigma \(4, 4\)"),
    "no features": (changed(mu=np.zeros(0), sigma=np.zeros((0, 0))), r"has mu \(0,\)"),
    "type": (changed(mu=np.arange(4)), "has mu of int64"),
    "nan": (changed(mu=entry(STATISTICS.mean, np.nan)), "has NaN or infinite entries"),
    "inf": (changed(sigma=entry(STATISTICS.covariance, np.inf)), "has NaN or infinite entries"),
    "negative": (changed(sigma=entry(STATISTICS.covariance, -1)), "negative variances"),
    "asymmetric": (changed(sigma=tilted()), "sigma is not symmetric: entries differ by 0.01"),
    "features": ({"pool_3": FEATURES[0]}, r"pool_3 is not a matrix .* float64 \(4,\)"),
    "columns": ({"pool_3": np.asfortranarray(FEATURES)}, "pool_3 is not a matrix .* row by row"),
    "one row": ({"pool_3": FEATURES[:1]}, "total=1 images are too few"),
    "nan row": ({"pool_3": entry(FEATURES, np.nan)}, "1 of 50 images .* first of image 49"),
    "format": (changed(**OURS, provenance=origin(format=2)), "provenance is not of format 1"),
    "json": (changed(**OURS, provenance=np.array("{")), "cannot be read"),
    "list": (changed(**OURS, provenance=np.array("[]")), "provenance is not of format 1"),
    "field": (changed(**OURS, provenance=origin(split=None)), "provenance is wrong in split: "),
    "type of a field": (changed(**OURS, provenance=origin(count="50")), "is wrong in count: "),
    "new field": (changed(**OURS, provenance=origin(crop=3)), "provenance is wrong in crop: "),
    "no count": (changed(provenance=origin()), "count"),
    "count": (changed(count=np.array(9), provenance=origin()), "counts 9 images, .* says 50"),
}


@pytest.mark.parametrize("name", WRONG)
def test_files_with_wrong_arrays(tmp_path, name):
    arrays, message = WRONG[name]
    file = tmp_path / "a.npz"
    np.savez(file, **arrays)
    refused(file, message)


def test_a_header_that_promises_too_much_takes_no_memory(tmp_path):
    """100 terabytes of features, of which the file has 16 bytes."""
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (10**10, 2500)}
    )
    file = tmp_path / "a.npz"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("pool_3.npy", head.getvalue() + bytes(16))
    refused(file, "'pool_3' has 16 bytes, but")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(5000), "sigma": np.zeros((5000, 5000), np.float16)}, "has 5000 features"),
        ({"pool_3": np.zeros((2, 5000))}, "pool_3 is not a matrix of at most 4096 features"),
        ({"pool_3": np.zeros((10**12, 0))}, "pool_3 is not a matrix of at most 4096 features"),
    ],
)
def test_more_features_than_any_extractor_has(tmp_path, arrays, message):
    """A covariance takes the square of their number in memory."""
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    refused(tmp_path / "a.npz", message)
