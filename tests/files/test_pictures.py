"""Grids in reading order, and image files that read back."""

import numpy as np
import pytest
from PIL import Image

from files.pictures import image_grid, write_gif, write_png


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("count", "rows", "columns"), [(1, 1, 1), (2, 1, 2), (5, 2, 3), (9, 3, 3)])
def test_grid_holds_every_image_in_reading_order(count, rows, columns, channels):
    images = np.random.default_rng(0).integers(0, 256, (count, 50, 40, channels), np.uint8)
    grid = image_grid(images)
    assert grid.shape == (rows * 51 - 1, columns * 41 - 1, channels)
    for number, image in enumerate(images):
        top, left = 51 * (number // columns), 41 * (number % columns)
        np.testing.assert_array_equal(grid[top : top + 50, left : left + 40], image)


def test_tiny_images_are_enlarged():
    image = np.arange(64, dtype=np.uint8).reshape(1, 8, 8, 1)
    grid = image_grid(image)
    assert grid.shape == (40, 40, 1)
    np.testing.assert_array_equal(grid[::5, ::5], image[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_png_reads_back_and_gif_keeps_its_frames(tmp_path, channels):
    frames = np.random.default_rng(0).integers(0, 256, (3, 6, 7, channels), np.uint8)
    write_png(tmp_path / "a.png", frames[0])
    np.testing.assert_array_equal(
        np.asarray(Image.open(tmp_path / "a.png")).reshape(frames[0].shape), frames[0]
    )
    write_gif(tmp_path / "a.gif", list(frames))
    with Image.open(tmp_path / "a.gif") as animation:
        assert animation.n_frames == 3
        assert animation.size == (7, 6)
        durations = []
        for frame in range(3):
            animation.seek(frame)
            durations.append(animation.info["duration"])
        assert durations == [60, 60, 2000]  # GIF counts in hundredths of a second
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.gif", "a.png"]


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_other_numbers_of_channels_lie_side_by_side(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (4, 48, 40, channels), np.uint8)
    grid = image_grid(images, columns=1)
    for channel in range(channels):
        np.testing.assert_array_equal(
            grid[:48, 40 * channel : 40 * (channel + 1), 0], images[0, ..., channel]
        )
    write_png(tmp_path / "a.png", images[1])
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture)[:, -40:], images[1, ..., -1])
