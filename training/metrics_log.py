"""The scalars of a training run, as JSON lines and in TensorBoard.

metrics.jsonl    one object per line: {"step": ..., "loss": ..., "images_per_sec": ...}
tensorboard/     the same scalars, and sample grids
"""

import contextlib
import json
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from files.writing import write_file


class MetricsLog:
    """The log of one run.

    Opening it at `step` drops the lines that a stopped run wrote after that step, so a resumed run
    leaves the log of a run that never stopped.

    Args:
        workdir: the run's folder.
        step: the last step whose scalars are kept.
    """

    def __init__(self, workdir: Path, *, step: int) -> None:
        from tensorboardX import SummaryWriter  # here, since only training needs it

        self._path = workdir / "metrics.jsonl"
        if self._path.exists():
            lines = self._path.read_bytes().splitlines(keepends=True)
            kept = b"".join(line for line in lines if (_step(line) or step + 1) <= step)
            write_file(self._path, lambda temporary: temporary.write_bytes(kept))
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, scalars: dict[str, float]) -> None:
        """Record the scalars of a step.

        Raises:
            OSError: if the disk is full. The log is repaired when the run resumes.
        """
        try:
            print(json.dumps({"step": step, **scalars}), file=self._file, flush=True)
        except OSError as error:  # print's error does not name the file
            raise OSError(error.errno, error.strerror, str(self._path)) from error
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)

    def image(
        self, step: int, name: str, image: UInt8[np.ndarray, "height width channels"]
    ) -> None:
        """Show an image in TensorBoard."""
        self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        """Close both files."""
        with contextlib.suppress(OSError):  # from a line that `write` could not write
            self._file.close()
        self._board.close()


def last_step(workdir: Path) -> int:
    """Return the last step in the log of a run; 0 if there is none."""
    try:
        lines = (workdir / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return 0
    return max((_step(line) or 0 for line in lines), default=0)


def _step(line: bytes) -> int | None:
    """Return the step of a line; None for half a line of a killed run, or torn bytes."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
