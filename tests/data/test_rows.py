"""Rows of floats: what a file holds, what is held out, how batches are drawn, what is refused."""

import re

import numpy as np
import pytest

from data.rows import RowBatches, kind_of, load_rows, shape_of, standardizer_of
from data.scaling import Standardizer


def save(path, array, **more):
    np.save(path, array) if path.suffix == ".npy" else np.savez(path, train=array, **more)
    return str(path)


def floats(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("array", "kind"),
    [
        (floats(5, 3), "points"),
        (floats(5, 7, 2), "series"),
        (np.zeros((5, 8, 8), np.uint8), "images"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_the_kind_and_shape_are_read_from_the_header(tmp_path, array, kind, suffix):
    name = save(tmp_path / f"set{suffix}", array)
    assert kind_of(name) == kind
    if kind != "images":
        assert shape_of(name, kind) == array.shape[1:]


def test_names_choose_generators():
    assert [kind_of(name) for name in ("points:moons", "series:waves", "digits")] == [
        "points",
        "series",
        "images",
    ]
    assert shape_of("series:waves", "series") == (32, 1)


def test_rows_and_classes_of_a_file_are_kept_and_a_tenth_is_held_out(tmp_path):
    rows = floats(40, 3)
    name = save(tmp_path / "set.npy", rows.astype(np.float64))
    np.save(tmp_path / "set_labels.npy", np.arange(40) % 4)
    found = load_rows(name, "points", samples=20, seed=0)
    assert (found.train.shape, found.test.shape) == ((36, 3), (4, 3))
    both = np.concatenate([found.train, found.test])
    labels = np.concatenate([found.train_labels, found.test_labels])
    order = [int(np.flatnonzero((rows == row).all(axis=1))[0]) for row in both]
    assert sorted(order) == list(range(40))
    np.testing.assert_array_equal(labels, np.array(order) % 4)
    other = load_rows(name, "points", samples=20, seed=1)
    assert other.fingerprint != found.fingerprint
    assert load_rows(name, "points", samples=20, seed=0).fingerprint == found.fingerprint


def test_test_rows_of_a_file_are_its_own(tmp_path):
    test = floats(3, 6, 1, seed=1)
    name = save(tmp_path / "set.npz", floats(9, 6, 1), val=test, extra=np.ones(2))
    found = load_rows(name, "series", samples=20, seed=0)
    assert len(found.train) == 9
    np.testing.assert_array_equal(found.test, test)
    assert "not used: extra" in found.notes[0]


def test_batches_are_functions_of_the_step_and_slices_make_the_whole():
    rows = floats(10, 2)
    scaler = standardizer_of("x", rows)
    batches = RowBatches(
        rows=rows, batch_size=4, seed=0, scaler=scaler, labels=np.arange(10, dtype=np.int32)
    )
    whole = batches.at(3)
    np.testing.assert_array_equal(
        np.concatenate([batches.at(3, slice(0, 1)), batches.at(3)[1:]]), whole
    )
    np.testing.assert_allclose(scaler.inverse(whole), rows[batches.labels_at(3)], atol=1e-6)
    seen = np.concatenate([batches.labels_at(step) for step in range(5)])
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))


def test_standardized_rows_have_mean_0_and_deviation_1_and_the_density_changes_by_log_det():
    rows = 3 * floats(500, 7, 2) + np.float32([5, -1])
    scaler = standardizer_of("x", rows)
    scaled = scaler.forward(rows.astype(np.float64)).reshape(-1, 2)
    np.testing.assert_allclose(scaled.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled.std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(scaler.inverse(scaler.forward(rows)), rows, rtol=1e-6, atol=1e-6)
    jacobian = np.diag(np.tile(1 / np.array(scaler.std), 7))
    assert scaler.log_det(14) == pytest.approx(np.linalg.slogdet(jacobian)[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f: shape_of("points:spiral", "points"), "'points:spiral' is unknown.*points:moons"),
        (lambda f: shape_of("digits", "points"), "name='digits' is not points; give points:"),
        (lambda f: shape_of("none.npy", "points"), "the file is missing; give rows"),
        (lambda f: shape_of("points:moons", "series"), "kind='series' does not fit"),
        (lambda f: kind_of(f(floats(4, 2, 2, 2))), r"expected points \(n, coordinates\), series"),
        (lambda f: kind_of(f(floats(4))), "holds float32 of shape"),
        (
            lambda f: shape_of(f(floats(4, 2)), "series"),
            r"store array\[\.\.\., None\], or give con",
        ),
        (
            lambda f: shape_of(f(floats(4, 2, 1)), "points"),
            r"store array.reshape\(len\(array\), -1",
        ),
        (lambda f: shape_of(f(floats(0, 2)), "points"), "it holds no numbers"),
        (lambda f: load_rows(f(floats(1, 2)), "points", samples=9, seed=0), "train and test need"),
        (
            lambda f: load_rows(f(floats(9, 2) / [1, 0]), "points", samples=9, seed=0),
            "9 of 9 rows hold NaN or infinite numbers, the first is row 0; remove or repair them",
        ),
        (lambda f: standardizer_of("x", np.ones((5, 2), np.float32)), "coordinate 0 is constant"),
        (lambda f: Standardizer(mean=(0.0,), std=(1.0, 1.0)), "mean has length 1 and std 2"),
        (lambda f: Standardizer(mean=(0.0,), std=(0.0,)), "std=0.0 must be above 0"),
    ],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_what_cannot_be_read_is_refused_in_one_line(tmp_path, call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(lambda array: save(tmp_path / "set.npy", array))
    assert not re.search("\n", str(error.value))
