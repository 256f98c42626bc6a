"""Image files: their pixels, and what is refused in one line and starts no program."""

import contextlib
import io
import os
import struct
import time

import numpy as np
import pytest
from PIL import Image
from stored_images import POSTSCRIPT, one_line, png, random_images

from data.stored import decode


def test_pictures_of_other_modes(tmp_path):
    color = random_images(1)[0]
    opaque = np.full((4, 4), 255, np.uint8)
    Image.fromarray(np.dstack([color, opaque])).save(tmp_path / "a.png")
    Image.fromarray(color).quantize(256).save(tmp_path / "b.png")
    Image.fromarray(color).save(tmp_path / "c.ppm")
    Image.fromarray(color).save(tmp_path / "d.bmp")
    Image.fromarray(color).save(tmp_path / "e.webp", lossless=True)
    Image.fromarray(color).save(tmp_path / "f.tiff", compression="tiff_lzw")
    for file in tmp_path.iterdir():
        np.testing.assert_array_equal(decode(file, file.name).image, color)
    two = Image.fromarray(np.dstack([color[..., 0], opaque]))
    two.save(tmp_path / "gray.png")
    np.testing.assert_array_equal(decode(tmp_path / "gray.png", "x").image, color[..., :1])


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


TOO_DEEP = np.full((4, 12), 200, ">u2")  # below 256: black where the lower bits are dropped


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x89PNG\r\n\x1a\n nothing", "not a readable image"),
        (b"", "not a readable image"),
        (saved(Image.fromarray(random_images(1)[0]), "PNG")[:-30], "not a readable image"),
        (saved(Image.fromarray(random_images(1, size=64)[0]), "JPEG")[:900], "not a readable"),
        (POSTSCRIPT, "formats PNG, JPEG, BMP, TIFF, WEBP, PPM; convert it"),
        (saved(Image.new("RGB", (4, 4)), "GIF"), "formats PNG, JPEG"),
        (b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miafMA1B", "formats PNG, JPEG"),
        (png(100_000, 100_000), "has too many pixels; make it smaller"),
        (png(12_000, 12_000, rows=bytes(12_000)), "too many pixels, 12000x12000 in .* bytes; make"),
        (png(4, 4, rows=b"\0\1"), "not a readable image"),
        (saved(Image.new("RGBA", (4, 4), (9, 9, 9, 9)), "PNG"), "transparent"),
        (saved(Image.new("I;16", (4, 4)), "PNG"), "more than 8 bits per channel; convert"),
        (png(4, 4, depth=16, rows=b"".join(b"\0" + row.tobytes() for row in TOO_DEEP)), "8 bits"),
        (b"P6 4 4 65535\n" + TOO_DEEP.tobytes(), "8 bits"),
        (b"P5 4 4 65535\n" + TOO_DEEP[:, :4].tobytes(), "8 bits"),
    ],
)
def test_unfit_pictures_are_one_line(tmp_path, monkeypatch, content, message):
    """A program in the place of Ghostscript would be found out."""
    program, started = tmp_path / "gs", tmp_path / "started"
    program.write_text(f"#!/bin/sh\ntouch {started}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    (tmp_path / "c.png").write_bytes(content)
    start = time.monotonic()
    with pytest.raises(ValueError, match=rf"^c\.png .*{message}") as error:
        decode(tmp_path / "c.png", "c.png")
    assert one_line(error)
    assert not started.exists()
    assert time.monotonic() - start < 5


def test_photographs_are_turned_upright():
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera's top is at the right
    content = saved(Image.fromarray(image), "PNG", exif=exif)
    np.testing.assert_array_equal(decode(io.BytesIO(content), "x").image, np.rot90(image, -1))


def test_pictures_in_16_bits_per_pixel_are_not_deep(tmp_path):
    """Bitmaps may share 16 bits among three channels."""
    info = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, 16, 3, 8, 0, 0, 0, 0)
    masks = struct.pack("<III", 0xF800, 0x7E0, 0x1F)
    start = 14 + len(info) + len(masks)
    content = b"BM" + struct.pack("<IHHI", start + 8, 0, 0, start) + info + masks + b"\xff" * 8
    np.testing.assert_array_equal(decode(io.BytesIO(content), "x").image, 255)


@contextlib.contextmanager
def one_line_about(start):
    """Every error inside is one line that begins with `start`."""
    try:
        yield
    except ValueError as error:
        message = str(error)
        assert message.startswith(start)
        assert "\n" not in message
        raise


def test_damaged_pictures_never_end_otherwise(tmp_path):
    rng = np.random.default_rng(0)
    picture = Image.fromarray(random_images(1, size=16)[0])
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "PPM"):
        whole = np.frombuffer(saved(picture, kind), np.uint8)
        for _ in range(30):
            damaged = whole.copy()
            places = rng.integers(0, min(len(whole), 200), 3)
            damaged[places] = rng.integers(0, 256, 3)
            with contextlib.suppress(ValueError), one_line_about("x "):
                decode(io.BytesIO(damaged.tobytes()), "x")


def test_pipes_and_folders_never_wait(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for name, message in (
        ("pipe.png", "a pipe"),
        ("folder.png", "a folder"),
        ("no.png", "no such"),
    ):
        with pytest.raises(ValueError, match=message):
            decode(tmp_path / name, "x")


def test_a_second_page_is_noticed():
    pages = [Image.fromarray(image) for image in random_images(2)]
    several = saved(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    image, more_pages = decode(io.BytesIO(several), "x")
    np.testing.assert_array_equal(image, random_images(2)[0])
    assert more_pages
    assert not decode(io.BytesIO(saved(pages[0], "TIFF")), "x").more_pages
