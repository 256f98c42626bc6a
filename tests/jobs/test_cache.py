"""Work in batches: every index once, and nothing done twice."""

import numpy as np
import pytest

from jobs.cache import Resumable, batches_of


@pytest.mark.parametrize(("count", "size"), [(1, 4), (4, 4), (5, 4), (12, 5), (297, 128)])
def test_batches_cover_every_index_once(count, size):
    batches = batches_of(count, size)
    np.testing.assert_array_equal(np.concatenate(batches), np.arange(count))
    assert max(map(len, batches)) <= size
    assert len({len(batch) for batch in batches[:-1]}) <= 1


def test_what_is_done_is_read_and_only_what_depends_on_a_change_is_done_again(tmp_path):
    calls = []

    def compute(indices):
        calls.append(indices.tolist())
        return {"squares": indices**2, "image": np.zeros((len(indices), 2), np.uint8)}

    def job(protocol):
        work = Resumable(tmp_path / "work", protocol)
        return work, work.stamped("part", "seed", "size.")

    protocol = {"seed": 0, "size": {"h": 1}, "other": 2}
    work, name = job(protocol)
    next(work.collect(name, 7, 4, compute))  # stopped after the first batch
    work, name = job(protocol | {"other": 3})
    found = work.gather(name, 7, 4, compute)
    np.testing.assert_array_equal(found["squares"], np.arange(7) ** 2)
    assert found["image"].shape == (7, 2)
    assert calls == [[0, 1, 2, 3], [4, 5, 6]]
    for changed in ({"seed": 1}, {"size": {"h": 2}}):
        work, name = job(protocol | changed)
        work.keep(name, np.arange(4), compute)
    assert len(calls) == 4
    work.remove()
    assert not (tmp_path / "work").exists()
