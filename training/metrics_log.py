"""The scalars of a run."""

import contextlib
import json
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from files.writing import write_file


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
