"""Batches are divided over four devices, or refused with sizes that would divide."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from training.parallel import DataParallel, in_order_of_hosts

FOUR = DataParallel.over_all_devices()


def test_batches_are_split_by_rows_and_fetched_whole():
    rows = np.arange(24.0).reshape(8, 3)
    for placed in (FOUR.put_batch(rows), FOUR.split_rows(rows)):
        assert {shard.data.shape for shard in placed.addressable_shards} == {(2, 3)}
        np.testing.assert_array_equal(FOUR.fetch(placed), rows)
    assert FOUR.local_rows(8) == slice(0, 8)
    assert FOUR.describe(8).startswith("8 = 4 device(s) x 2 (")


def test_level_of_optimization_in_the_flags_is_that_of_all_programs(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_other=1")
    assert FOUR.once == {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_other=1")
    double = jax.jit(lambda x: 2 * x, compiler_options=FOUR.once)
    assert double(3) == 6
    assert len(FOUR.once) == 1


def test_devices_are_those_of_one_host_after_the_other():
    class Device(NamedTuple):
        process_index: int
        id: int

    ring = [Device(0, 0), Device(1, 3), Device(0, 2), Device(1, 1)]
    assert [device.id for device in in_order_of_hosts(ring)] == [0, 2, 3, 1]


def test_largest_number_of_the_hosts_is_found():
    assert int(FOUR.largest(15)) == 15


@pytest.mark.parametrize(
    ("size", "remedy"), [(0, "4"), (-4, "4"), (3, "4"), (6, "4 or 8"), (9, "8 or 12")]
)
def test_batch_that_does_not_divide_is_refused_with_its_neighbors(size, remedy):
    message = rf"training.batch_size={size} does not divide over 4 .*, such as {remedy}$"
    with pytest.raises(ValueError, match=message):
        FOUR.check_batch(size, "training.batch_size")


def test_parts_are_equal_shares_of_each_device_and_join_to_the_batch():
    rows = np.arange(48.0).reshape(16, 3)
    placed = FOUR.put_batch(rows)

    @jax.jit
    def split(rows):
        parts = jnp.stack([FOUR.part(rows, index=jnp.int32(k), parts=2) for k in range(2)])
        return parts, FOUR.joined(parts)

    parts, joined = split(placed)
    np.testing.assert_array_equal(joined, rows)
    np.testing.assert_array_equal(parts[1], rows.reshape(4, 2, 2, 3)[:, 1].reshape(8, 3))
    assert joined.sharding.is_equivalent_to(FOUR.split, 2)


@pytest.mark.parametrize(("parts", "fits"), [(0, "1, 2, 3, 6"), (4, "1, 2, 3, 6"), (5, "1, 2")])
def test_parts_that_do_not_divide_are_refused_with_those_that_do(parts, fits):
    message = rf"accumulate={parts} does not divide the 6 images of each .*; use one of {fits}"
    with pytest.raises(ValueError, match=message):
        FOUR.check_parts(24, parts, "accumulate")
    FOUR.check_parts(24, 3, "accumulate")


def test_batch_that_divides_is_accepted():
    for size in (4, 8, 400):
        FOUR.check_batch(size, "batch_size")


def test_devices_are_compared_with_published_hardware_by_kind_and_number():
    for hardware in (FOUR.kind, f"{FOUR.devices} {FOUR.kind}"):
        assert FOUR.matches(hardware)
    for hardware in ("8 V100", "V100", f"{FOUR.devices + 1} {FOUR.kind}"):
        assert not FOUR.matches(hardware)
