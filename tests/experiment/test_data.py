"""The data of an experiment: notes are printed once, and remedies for labels work."""

import re

import numpy as np
import pytest
from stored_images import random_images, save_folder

from errors import ConfigError
from experiment.data import Data
from experiment.options import DataOptions
from training.parallel import DataParallel


def data_of(path, **options):
    return Data(
        DataOptions(name=str(path), image_size=4, **options), DataParallel.over_all_devices()
    )


def test_notes_are_printed_once(tmp_path, capsys):
    for split in ("train", "val"):
        names = [f"{label}/{k}.png" for label in ("cat", "dog") for k in range(2)]
        save_folder(tmp_path / split, names, random_images(4))
    (tmp_path / "train/cat/x.gif").write_bytes(b"")
    data = data_of(tmp_path, channels=3)
    assert data.images.class_names == ("cat", "dog")
    assert len(data.images.train) == 4
    printed = capsys.readouterr().out
    assert printed.count("classes 0 cat, 1 dog") == 1
    assert printed.count("not read: 1 .gif") == 1
    assert len(printed.splitlines()) == 2


@pytest.mark.parametrize(
    ("labels", "num_classes", "remedy"),
    [
        ([-1, 0, 3], 4, "number them from 0"),
        ([1, 3, 5], 5, "number them from 0"),
        ([0, 2, 5], 5, "set it to 6"),
    ],
)
def test_remedy_for_labels_works(tmp_path, labels, num_classes, remedy):
    data, labels = data_of(tmp_path), np.array(labels)
    with pytest.raises(ConfigError, match=rf"are {min(labels)}\.\.{max(labels)}; {remedy}$"):
        data.require_classes(labels, num_classes, "model")
    if number := re.search("[0-9]+$", remedy.replace("from 0", "")):
        data.require_classes(labels, int(number[0]), "model")
    else:
        data.require_classes(labels - labels.min(), int(np.ptp(labels)) + 1, "model")
