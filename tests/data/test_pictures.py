"""Inputs by name: files of every kind, test images and masks; wrong ones are named."""

import os

import numpy as np
import pytest
from PIL import Image
from stored_images import POSTSCRIPT

from data.pictures import read_images, read_mask

SHAPE = (4, 6, 1)


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def some_images(count):
    return lambda: pixels(count, *SHAPE).astype(np.float32) / 255


def test_files_of_every_kind_hold_the_same_numbers(tmp_path):
    image = pixels(4, 6)
    Image.fromarray(image).save(tmp_path / "a.png")
    Image.fromarray(np.stack([image] * 3, axis=-1)).save(tmp_path / "rgb.png")
    np.save(tmp_path / "b.npy", image)
    np.save(tmp_path / "c.npy", image[..., None] / 255)
    np.savez(tmp_path / "d.npz", samples=image[None, ..., None], other=np.zeros(2))
    for name in ("a.png", "rgb.png", "b.npy", "c.npy", "d.npz"):
        found = read_images(str(tmp_path / name), SHAPE, None)
        np.testing.assert_allclose(found, image[None, ..., None] / 255, atol=1e-6)
    names = f"{tmp_path}/a.png, {tmp_path}/c.npy"
    assert read_images(names, SHAPE, None).shape == (2, *SHAPE)
    gray = read_images(str(tmp_path / "a.png"), (4, 6, 3), None)
    np.testing.assert_array_equal(gray[..., 0], gray[..., 2])


def test_test_images_are_named_by_number():
    images = some_images(9)()
    for name, wanted in (("test", slice(0, 9)), ("test:3", slice(3, 4)), ("test:2-5", slice(2, 6))):
        np.testing.assert_array_equal(read_images(name, SHAPE, some_images(9)), images[wanted])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("test:9", r"input='test:9' does not exist; the test images are test:0 to test:8"),
        ("test:5-2", "does not exist; the test images are"),
        ("test:x", "does not exist; the test images are"),
        ("test:-1", r"input='test:-1' does not exist; the test images are test:0 to test:8"),
        ("test:1--1", "does not exist; the test images are"),
        ("test:+1", "does not exist; the test images are"),
        ("test:1_0", "does not exist; the test images are"),
        ("test:1-", "does not exist; the test images are"),
        ("test0", "input='test0': there is no such file"),
        ("test:0,,test:1", "has an empty name"),
        ("nothing.png", r"input='nothing.png': there is no such file"),
        ("~nobody-here/a.png", "there is no such file"),
        ("zero\0byte.png", "no valid path"),
        ("folder.png", "it is a folder instead of a file"),
        ("pipe.png", "it is a pipe instead of a file"),
        ("pipe.npy", "it is a pipe instead of a file"),
        ("/dev/zero", "it is a device instead of a file"),
        ("bad.png", r"input='.*bad.png' is not a readable image"),
        ("pages.tif", "has several pages; give one image per file"),
        ("postscript.png", "is not a readable image of the formats PNG"),
        ("bad.npy", r"input='.*bad.npy': its member 'bad' is not an array"),
        ("bad.npz", r"input='.*bad.npz': it is not an .npz"),
        ("none.npz", r"input='none.npz' holds no array"),
        ("nchw.npy", "shape .3, 4, 6., but must have .4, 6, 1.; resize it"),
        ("empty.npy", r"has shape \(0, 4, 6, 1\)"),
        ("large.png", r"has shape \(8, 8, 1\), but must have \(4, 6, 1\); resize it"),
        ("bright.npy", r"has numbers from 0 to 2; images must be in \[0, 1\], or uint8"),
        ("nan.npy", "holds NaN"),
        ("complex.npy", "holds complex128; give finite real numbers"),
        ("huge.npy", "beyond float32"),
        ("many.npz", "holds a, b; name one of them samples"),
    ],
)
def test_wrong_pictures_are_one_line(tmp_path, monkeypatch, name, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"PNG")
    (tmp_path / "bad.npy").write_bytes(b"NUMPY")
    (tmp_path / "bad.npz").write_bytes(b"ZIP")
    Image.fromarray(pixels(8, 8)).save("large.png")
    np.save("bright.npy", np.linspace(0, 2, 24).reshape(SHAPE))
    np.save("nan.npy", np.full(SHAPE, np.nan))
    np.save("complex.npy", np.ones(SHAPE, complex))
    np.save("huge.npy", np.full(SHAPE, 1e300))
    np.save("nchw.npy", np.zeros((3, 4, 6)))
    np.save("empty.npy", np.zeros((0, *SHAPE)))
    os.mkfifo("pipe.png")
    os.mkfifo("pipe.npy")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "postscript.png").write_bytes(POSTSCRIPT)
    pages = [Image.fromarray(pixels(4, 6, seed=seed)) for seed in range(2)]
    pages[0].save("pages.tif", save_all=True, append_images=pages[1:])
    np.savez("none.npz")
    np.savez("many.npz", a=np.ones(SHAPE), b=np.ones(SHAPE))
    with pytest.raises(ValueError, match=message) as caught:
        read_images(name, SHAPE, some_images(9))
    assert "\n" not in str(caught.value)


def test_array_with_the_channels_first_is_recognized(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"\(3, 8, 8\), but must have \(8, 8, 3\); transpose it"):
        read_images(str(tmp_path / "x.npy"), (8, 8, 3), None)


def test_comma_in_a_name_is_escaped(tmp_path):
    for name in ("a,b.png", "c.png"):
        Image.fromarray(pixels(4, 6)).save(tmp_path / name)
    names = rf"{tmp_path}/a\,b.png,{tmp_path}/c.png"
    assert read_images(names, SHAPE, None).shape == (2, *SHAPE)


def test_a_measurement_may_leave_the_range_and_is_no_test_image(tmp_path):
    np.save(tmp_path / "y.npy", np.linspace(-2, 2, 7))
    assert read_images(str(tmp_path / "y.npy"), (7,), None, in_range=False).shape == (1, 7)
    with pytest.raises(ValueError, match="must be a measurement, not a test image"):
        read_images("test:0", (7,), None)


def test_halves_are_half_and_their_opposites_the_other():
    masks = {name: read_mask(name, SHAPE) for name in ("left", "right", "top", "bottom", "random")}
    for mask in masks.values():
        assert mask.shape == SHAPE
        assert mask.mean() == 0.5
    assert masks["left"][:, :3].all()
    assert masks["top"][:2].all()
    np.testing.assert_array_equal(masks["left"] + masks["right"], 1)
    np.testing.assert_array_equal(masks["top"] + masks["bottom"], 1)
    border = read_mask("border", SHAPE)
    assert border[0].all()
    assert not border[1:3, 2:4].any()


@pytest.mark.parametrize("white", [1, 255])
def test_mask_files_are_white_where_known(tmp_path, white):
    mask = np.zeros((4, 6), np.uint8)
    mask[:2] = white
    np.save(tmp_path / "mask.npy", mask)
    Image.fromarray(mask).convert("RGB").save(tmp_path / "mask.png")
    for name in ("mask.npy", "mask.png"):
        np.testing.assert_array_equal(read_mask(str(tmp_path / name), SHAPE), (mask > 0)[..., None])


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.zeros((4, 6)), "is black; make the known"),
        (np.linspace(0, 1, 24).reshape(4, 6), "has gray pixels"),
        (np.ones((6, 4)), r"has shape \(6, 4, 1\), but must have \(4, 6, 1\)"),
        (np.where(np.eye(4, 6), 7, 0), "has 7 for known pixels; give 0 for unknown and 1"),
        (np.where(np.eye(4, 6), 0.5, 0), "has 0.5 for known pixels"),
        (np.where(np.eye(4, 6), -1, 0), "has gray pixels"),
        (np.where(np.eye(4, 6), 100, 0).astype(np.uint8), "for known pixels"),
        (None, r"mask='.*mask.npy': there is no such file; give a file, .*: left, right, top"),
    ],
)
def test_wrong_masks_are_one_line(tmp_path, mask, message):
    if mask is not None:
        np.save(tmp_path / "mask.npy", mask)
    with pytest.raises(ValueError, match=message):
        read_mask(str(tmp_path / "mask.npy"), SHAPE)


def test_mask_that_is_no_file_is_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name, message in (("", "names no file"), (str(tmp_path), "folder"), ("pipe", "pipe")):
        with pytest.raises(ValueError, match=f"{message}.*; give a file, white"):
            read_mask(name and os.path.join(tmp_path, name), SHAPE)


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.int64, np.float64])
def test_masks_of_every_type(tmp_path, dtype):
    mask = np.eye(4, 6).astype(dtype)
    np.save(tmp_path / "mask.npy", mask)
    np.testing.assert_array_equal(read_mask(f"{tmp_path}/mask.npy", SHAPE)[..., 0], mask)
    if dtype is not bool:
        np.save(tmp_path / "mask.npy", mask * 255)
        np.testing.assert_array_equal(read_mask(f"{tmp_path}/mask.npy", SHAPE)[..., 0], mask)
