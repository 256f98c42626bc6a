"""Folders as people have them: splits, classes and links; what is not read is counted."""

import numpy as np
import pytest
from PIL import Image
from stored_images import one_line, random_images, save_folder

from data.datasets import load


def read(folder, **options):
    return load(str(folder), **{"image_size": 4, "channels": 3} | options)


def noted(data, text):
    return sum(text in note for note in data.notes) == 1


def test_folder_with_splits_and_classes(tmp_path):
    train, test = random_images(4), random_images(2, seed=1)
    save_folder(tmp_path / "train", ["dog/b.png", "cat/a.png", "cat/b.PNG", "dog/a.bmp"], train)
    save_folder(tmp_path / "test", ["cat/a.png", "dog/z.png"], test)
    (tmp_path / "train/cat/._a.png").write_bytes(b"hidden, not an image")
    (tmp_path / "train/.checkpoints").mkdir()
    (tmp_path / "train/.checkpoints/a.png").write_bytes(b"in a hidden folder")
    data = read(tmp_path)
    np.testing.assert_array_equal(data.train, train[[1, 2, 3, 0]])
    np.testing.assert_array_equal(data.test, test)
    np.testing.assert_array_equal(data.train_labels, [0, 0, 1, 1])
    np.testing.assert_array_equal(data.test_labels, [0, 1])
    assert data.class_names == ("cat", "dog")
    assert noted(data, "classes 0 cat, 1 dog")


@pytest.mark.parametrize("train_name", ["train", "Train", "training"])
@pytest.mark.parametrize("name", ["test", "TEST", "val", "Val", "valid", "validation", "dev"])
def test_held_out_images_are_never_trained_on(tmp_path, train_name, name):
    train, held_out = random_images(4), random_images(3, seed=1)
    save_folder(tmp_path / train_name, [f"{k}.png" for k in range(4)], train)
    save_folder(tmp_path / name, [f"{k}.png" for k in range(3)], held_out)
    data = read(tmp_path)
    np.testing.assert_array_equal(data.train, train)
    np.testing.assert_array_equal(data.test, held_out)
    assert data.train_labels is None
    assert data.class_names is None


def test_of_several_held_out_folders_one_is_used_and_the_others_are_named(tmp_path):
    for seed, split in enumerate(("train", "val", "test", "dev", "extra")):
        save_folder(tmp_path / split, ["a.png", "b.png"], random_images(2, seed=seed))
    save_folder(tmp_path, ["loose.png"], random_images(1))
    (tmp_path / "annotations").mkdir()
    data = read(tmp_path)
    np.testing.assert_array_equal(data.train, random_images(2))
    np.testing.assert_array_equal(data.test, random_images(2, seed=2))
    assert noted(data, "not used: val/, dev/, extra/, images beside the splits (1)")


def test_train_alone_has_classes_and_holds_out_a_tenth(tmp_path):
    save_folder(tmp_path / "train", [f"{k % 2}/{k}.png" for k in range(10)], random_images(10))
    (tmp_path / "annotations").mkdir()
    data = read(tmp_path)
    assert (len(data.train), len(data.test)) == (9, 1)
    assert set(data.train_labels) == {0, 1}


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        (["test", "cat"], "holds test/ but no train/; put"),
        (["val", "test"], "holds test/ but no train/; put"),
        (["train", "car", "bus"], "holds train/ beside bus/, car/; if it is a class, rename it"),
        (["train", "Train", "test"], "holds Train/ and train/; keep one"),
        (["train", "test", "Test"], "holds Test/ and test/; keep one"),
        (["cat/train", "cat/test", "dog/train", "dog/test"], "outside the classes"),
        (["set/train", "set/val"], "set holds training and test images; give this folder"),
        (["train/cat/train", "train/cat/val", "test/dog"], "outside the classes"),
    ],
)
def test_what_could_be_read_in_several_ways_is_refused(tmp_path, folders, message):
    for folder in folders:
        save_folder(tmp_path / folder, ["a.png"], random_images(1))
    with pytest.raises(ValueError, match=message) as error:
        read(tmp_path)
    assert one_line(error)


def test_numeric_classes_are_in_the_order_of_their_numbers(tmp_path):
    names = [str(number) for number in range(11)]
    images = random_images(11)
    for split in ("train", "test"):
        save_folder(tmp_path / split, [f"{name}/a.png" for name in names], images)
    data = read(tmp_path)
    assert data.class_names == tuple(names)
    by_label = data.train[np.argsort(data.train_labels)]
    np.testing.assert_array_equal(by_label, images)


def test_test_images_without_the_classes_of_training_have_no_labels(tmp_path):
    save_folder(tmp_path / "train", ["cat/a.png", "dog/a.png"], random_images(2))
    save_folder(tmp_path / "val", ["images/a.png", "images/b.png"], random_images(2))
    data = read(tmp_path)
    np.testing.assert_array_equal(data.train_labels, [0, 1])
    assert data.test_labels is None
    assert data.class_names == ("cat", "dog")


def test_linked_folders_are_followed_once(tmp_path):
    images = random_images(3)
    save_folder(tmp_path / "elsewhere", ["a.png"], images[:1])
    save_folder(tmp_path / "set", ["dog/a.png", "dog/b.png"], images[1:])
    (tmp_path / "set/cat").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (tmp_path / "set/dog/around").symlink_to(tmp_path / "set", target_is_directory=True)
    (tmp_path / "set/dog/self").symlink_to("self")
    (tmp_path / "set/alias").symlink_to(tmp_path / "set/dog", target_is_directory=True)
    data = read(tmp_path / "set")
    found = np.concatenate([data.train, data.test])
    assert sorted(map(bytes, found)) == sorted(map(bytes, images))
    assert data.class_names == ("cat", "dog")
    assert noted(data, "links to folders that are read or left out already: 2, the first is")


def test_links_bring_no_test_image_into_training(tmp_path):
    for seed, split in enumerate(("train", "test")):
        save_folder(tmp_path / split, ["a/1.png", "b/2.png"], random_images(2, seed=seed))
    for name, target in {"up": "..", "test": "../test", "part": "../test/a"}.items():
        (tmp_path / "train" / name).symlink_to(target, target_is_directory=True)
    data = read(tmp_path)
    np.testing.assert_array_equal(data.train, random_images(2))
    np.testing.assert_array_equal(data.test, random_images(2, seed=1))


def test_one_folder_as_both_splits_is_refused(tmp_path):
    save_folder(tmp_path / "train", ["a.png"], random_images(1))
    (tmp_path / "test").symlink_to("train", target_is_directory=True)
    with pytest.raises(ValueError, match="train/ and test/ are the same folder"):
        read(tmp_path)


def test_files_that_are_not_read_are_counted(tmp_path):
    images = random_images(4)
    save_folder(tmp_path, ["a/0.png", "a/1.png", "b/2.png", "3.png"], images)
    for name in ("a/x.gif", "a/y.GIF", "b/z.avif", "b/notes"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "broken.png").symlink_to("nowhere.png")
    pages = [Image.fromarray(image) for image in random_images(2)]
    pages[0].save(tmp_path / "a/pages.tif", save_all=True, append_images=pages[1:])
    data = read(tmp_path)
    assert len(data.train) + len(data.test) == 5
    assert data.train_labels is None
    assert noted(data, "not read: 2 .gif, 1 .avif, 1 .png (no file), 1 without a suffix")
    assert noted(data, "files with several pages: 1; only the first is read")
    assert noted(data, "images outside the subfolders: 1, so the subfolders are no classes")


def test_an_empty_folder_is_refused(tmp_path):
    (tmp_path / "a.gif").write_bytes(b"")
    with pytest.raises(ValueError, match=r"no images below .*; found 1 \.gif"):
        read(tmp_path)


def test_one_gray_image_among_colored_ones_is_repeated(tmp_path):
    images = random_images(20)
    save_folder(tmp_path, [f"{k:02}.png" for k in range(20)], images)
    gray = random_images(1, channels=1)[0]
    save_folder(tmp_path, ["20.png"], [gray])
    data = read(tmp_path)
    found = {bytes(image) for image in np.concatenate([data.train, data.test])}
    assert bytes(np.repeat(gray, 3, axis=-1)) in found
    assert len(found) == 21
    assert noted(data, "repeated to three channels: 1 of 21")
    with pytest.raises(ValueError, match=r"channels=1.* has 3; set config\.data\.channels=3"):
        read(tmp_path, channels=1)


def test_gray_images_alone_need_one_channel(tmp_path):
    for split in ("train", "test"):
        save_folder(tmp_path / split, ["a.png", "b.png"], random_images(2, channels=1))
    with pytest.raises(ValueError, match=r"channels=3.* has 1; set config\.data\.channels=1"):
        read(tmp_path)
    assert read(tmp_path, channels=1).train.shape == (2, 4, 4, 1)
    # Colored training images decide, so that the remedy is never the value before.
    save_folder(tmp_path / "train", ["c.png"], random_images(1))
    assert noted(read(tmp_path), "repeated to three channels: 2 of 2")
