"""--mode=check on data: their size, where they are held, and the speed of reading them."""

import re

import numpy as np
import pytest
from stored_images import random_images, save_folder

from experiment.images import Images
from experiment.options import DataOptions
from jobs.data_plan import describe_data
from training.parallel import DataParallel


def described(path, **options):
    options = {"image_size": 4, "channels": 3} | options
    return describe_data(
        Images(DataOptions(name=str(path), **options), DataParallel.over_all_devices())
    )


@pytest.mark.parametrize(("memory_gb", "place"), [(0, "read during training"), (1, "held in mem")])
def test_size_place_and_speed_are_stated(tmp_path, memory_gb, place):
    save_folder(tmp_path / "set", [f"{k}.png" for k in range(20)], random_images(20))
    text, train_count, test_count = described(tmp_path / "set", memory_gb=memory_gb)
    assert (train_count, test_count) == (18, 2)
    assert text.startswith(f"18 train + 2 test images of 4x4x3, 0.00 GB: {place}")
    assert (
        float(re.search(r"; ([\d,]+) images/s read by \d+ threads$", text)[1].replace(",", "")) > 0
    )


def test_what_cannot_be_read_is_a_line_and_no_error(tmp_path):
    np.savez(tmp_path / "x.npz", train=random_images(5), test=random_images(3))
    assert described(tmp_path / "x.npz").text.startswith("5 train + 3 test images of 4x4x3")
    for path, message in ((tmp_path / "none.npz", "no such file"), ("cifar11", "is unknown")):
        text, *counts = described(path)
        assert text.startswith("cannot be read: ")
        assert message in text
        assert counts == [None, None]
    assert "image_size=3" in described(tmp_path / "x.npz", image_size=3).text
