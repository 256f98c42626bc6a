"""A cache of batches: every index once, and nothing computed twice."""

import numpy as np
import pytest

from evaluation.protocol import Protocol
from jobs.cache import ResultCache, batches_of


@pytest.mark.parametrize(("count", "size"), [(1, 4), (4, 4), (5, 4), (12, 5), (297, 128)])
def test_batches_cover_every_index_once(count, size):
    batches = batches_of(count, size)
    np.testing.assert_array_equal(np.concatenate(batches), np.arange(count))
    assert max(map(len, batches)) <= size
    assert len({len(batch) for batch in batches[:-1]}) <= 1


def test_cached_batches_are_read_and_only_dependents_of_a_change_are_computed_again(tmp_path):
    calls = []

    def compute(indices):
        calls.append(indices.tolist())
        return {"squares": indices**2, "image": np.zeros((len(indices), 2), np.uint8)}

    def job(tree):
        cache = ResultCache(tmp_path / "work")
        return cache, Protocol(tree).key("part", "seed", "size.")

    tree = {"seed": 0, "size": {"h": 1}, "other": 2}
    cache, name = job(tree)
    next(cache.batches(name, 7, 4, compute))  # stopped after the first batch
    cache, name = job(tree | {"other": 3})
    found = cache.concatenate(name, 7, 4, compute)
    np.testing.assert_array_equal(found["squares"], np.arange(7) ** 2)
    assert found["image"].shape == (7, 2)
    assert calls == [[0, 1, 2, 3], [4, 5, 6]]
    for changed in ({"seed": 1}, {"size": {"h": 2}}):
        cache, name = job(tree | changed)
        cache.get_or_compute(name, np.arange(4), compute)
    assert len(calls) == 4
    cache.remove()
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, -1], ids=lambda keep: f"{keep} bytes")
def test_damaged_file_is_made_again(tmp_path, keep):
    cache, calls = ResultCache(tmp_path), []

    def compute(indices):
        calls.append(len(indices))
        return {"squares": indices**2}

    cache.get_or_compute("part", np.arange(9), compute)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:keep])
    for _ in range(2):
        found = cache.get_or_compute("part", np.arange(9), compute)
        np.testing.assert_array_equal(found["squares"], np.arange(9) ** 2)
    assert calls == [9, 9]
    assert file.read_bytes() == whole
