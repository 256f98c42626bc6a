"""Write a folder of JPEG images of any number and size, for benchmarks of reading them.

    python benchmarks/generated_images.py FOLDER --count=200000 --size=256

Each image is a smooth gradient of three colors plus one wave, so a file is small. Image k depends
on k alone. They lie in subfolders of 1000, which are read as classes.
"""

import argparse
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

PER_FOLDER = 1000


def gradient(number, size):
    """Image `number`, uint8 (size, size, 3)."""
    rng = np.random.default_rng(number)
    x = np.linspace(0, 1, size, dtype=np.float32)
    corners = rng.random((2, 2, 3), np.float32)
    rows = corners[0] + (corners[1] - corners[0]) * x[:, None, None]
    image = rows[:, :1] + (rows[:, 1:] - rows[:, :1]) * x[None, :, None]
    waves = rng.integers(1, 5, 2).astype(np.float32)
    wave = np.sin(2 * np.pi * waves[0] * x)[:, None] * np.cos(2 * np.pi * waves[1] * x)
    return np.clip(255 * (0.8 * image + 0.1 + 0.1 * wave[..., None]), 0, 255).astype(np.uint8)


def write(folder, first, count, size):
    """Write images first .. first + count - 1 into the subfolder of the first."""
    inside = Path(folder) / f"{first // PER_FOLDER:04}"
    inside.mkdir(parents=True, exist_ok=True)
    for number in range(first, first + count):
        Image.fromarray(gradient(number, size)).save(inside / f"{number:07}.jpg", quality=85)


def generate(folder, *, count, size, processes=2):
    """Write the folder, unless it is there with as many images."""
    last = Path(folder) / f"{(count - 1) // PER_FOLDER:04}/{count - 1:07}.jpg"
    if last.exists():
        return
    starts = range(0, count, PER_FOLDER)
    with ProcessPoolExecutor(processes) as pool:
        parts = [
            pool.submit(write, folder, first, min(PER_FOLDER, count - first), size)
            for first in starts
        ]
        for part in parts:
            part.result()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=256)
    arguments = parser.parse_args()
    generate(arguments.folder, count=arguments.count, size=arguments.size)
