"""The data of an experiment: notes are printed once, and remedies for labels work."""

import re

import numpy as np
import pytest
from stored_images import random_images, save_folder

from errors import ConfigError
from experiment.images import Images
from experiment.options import DataOptions
from training.parallel import DataParallel


def data_of(path, **options):
    return Images(
        DataOptions(name=str(path), image_size=4, **options), DataParallel.over_all_devices()
    )


def test_notes_are_printed_once(tmp_path, capsys):
    for split in ("train", "val"):
        names = [f"{label}/{k}.png" for label in ("cat", "dog") for k in range(2)]
        save_folder(tmp_path / split, names, random_images(4))
    (tmp_path / "train/cat/x.gif").write_bytes(b"")
    data = data_of(tmp_path, channels=3)
    assert data.splits.class_names == ("cat", "dog")
    assert len(data.splits.train) == 4
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


def test_missing_labels_are_those_of_a_split(tmp_path):
    names = ["cat/a.png", "dog/a.png"]
    save_folder(tmp_path / "train", names, random_images(2, channels=1))
    save_folder(tmp_path / "val", ["a.png"], random_images(1, channels=1))
    data = data_of(tmp_path)
    data.require_classes(data.splits.train_labels, 2, "model")
    with pytest.raises(ConfigError, match=r"the test images of .* have no labels"):
        data.require_classes(data.splits.test_labels, 2, "model")
    np.savez(tmp_path / "flat.npz", images=random_images(4, channels=1))
    with pytest.raises(ConfigError, match=r"has no labels; set config\.model\.num_classes=0"):
        data_of(tmp_path / "flat.npz").require_classes(None, 2, "model")
