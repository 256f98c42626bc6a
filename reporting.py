"""What people look at: metrics.jsonl, TensorBoard, image grids, animations and small tables.

Files appear whole or not at all: each is written beside its final name and then moved there.
"""

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

Images = UInt8[np.ndarray, "count height width channels"]


def write_file(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a temporary name in the same folder, then move the file to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        write(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write `content` as indented JSON, whole or not at all."""
    write_file(path, lambda temporary: temporary.write_text(json.dumps(content, indent=2) + "\n"))


class MetricsLog:
    """The scalars of a run: one JSON object a line in metrics.jsonl, and the same in TensorBoard.

    Opening it at `step` forgets what a stopped run had written after that step, so that a resumed
    run's record is the record of the run that never stopped.
    """

    def __init__(self, workdir: Path, *, step: int) -> None:
        from tensorboardX import SummaryWriter  # here, since only training needs it

        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            kept = [line for line in self._path.read_text().splitlines() if _is_upto(line, step)]
            text = "".join(f"{line}\n" for line in kept)
            write_file(self._path, lambda temporary: temporary.write_text(text))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Record the scalars of a step.

        Raises:
          OSError: if the disk is full; the record is repaired when the run goes on.
        """
        try:
            print(json.dumps({"step": step, **scalars}), file=self._file, flush=True)
        except OSError as error:  # which does not know the file
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def image(
        self, step: int, name: str, image: UInt8[np.ndarray, "height width channels"]
    ) -> None:
        """Show an image in TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a line that `write` has failed to write
            self._file.close()
        self._board.close()


def _is_upto(line: str, step: int) -> bool:
    try:
        return json.loads(line)["step"] <= step
    except (json.JSONDecodeError, KeyError, TypeError):
        return False  # the line that a killed run left half-written


def image_grid(images: Images, *, columns: int | None = None) -> UInt8[np.ndarray, "h w c"]:
    """Tile images, roughly square, with a one-pixel gap; tiny ones are enlarged to be seen."""
    count, height, width, channels = images.shape
    columns = columns or int(np.ceil(np.sqrt(count)))
    rows = -(-count // columns)
    tiles = np.full((rows * columns, height + 1, width + 1, channels), 128, np.uint8)
    tiles[:count, :height, :width] = images
    tiles = tiles.reshape(rows, columns, height + 1, width + 1, channels)
    grid = tiles.swapaxes(1, 2).reshape(rows * (height + 1), columns * (width + 1), channels)
    scale = max(1, 40 // max(height, width))
    return grid[:-1, :-1].repeat(scale, axis=0).repeat(scale, axis=1)


def _picture(array: UInt8[np.ndarray, "h w c"]) -> Any:
    from PIL import Image

    return Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def write_png(path: Path, array: UInt8[np.ndarray, "h w c"]) -> None:
    """Write an image of 1 or 3 channels as PNG."""
    write_file(path, lambda temporary: _picture(array).save(temporary))


def write_gif(path: Path, frames: Sequence[UInt8[np.ndarray, "h w c"]]) -> None:
    """Write an animation, 15 frames a second, that rests on its last frame for two seconds."""
    first, *rest = [_picture(frame) for frame in frames]
    durations = [66] * len(rest) + [2000]
    write_file(
        path,
        lambda temporary: first.save(
            temporary, save_all=True, append_images=rest, duration=durations, loop=0
        ),
    )


def table(rows: Sequence[tuple[str, ...]]) -> str:
    """Left-aligned columns, two spaces apart."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
