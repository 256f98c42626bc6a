"""The log of a training run: scalars and pictures, in files and in Weights & Biases.

metrics.jsonl    one object per line: {"step": ..., "loss": ..., "images_per_sec": ...}
tensorboard/     the same numbers, and sample grids

Nothing can be appended to an object in a bucket. There the files grow in a folder of this machine;
they are uploaded whole once a minute, before each checkpoint and at the end.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from files.nested import numbers
from files.paths import AnyPath, bucket_errors
from files.staging import StagedFolder
from files.writing import write_file

_FILE = "metrics.jsonl"
_UPLOADS = 60.0  # seconds between uploads to a bucket

Image = UInt8[np.ndarray, "height width channels"]


class Writer(Protocol):
    """A place for the log."""

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Record what is known of a step: numbers, and lists and dicts of them."""
        ...

    def image(self, step: int, name: str, image: Image) -> None:
        """Record a picture."""
        ...

    def close(self) -> None:
        """Write what is not written yet, and stop."""
        ...


class MetricsLog:
    """The log of one run, in all of its places.

    Opening it at `step` drops the lines that a stopped run wrote after that step, so a resumed run
    leaves the log of a run that never stopped.

    Args:
        workdir: the run's folder.
        step: the last step whose scalars are kept.
        config: the resolved configuration.
        wandb: a project of Weights & Biases; "" for none.
        leads: whether this process writes; others of several hosts do not.

    Raises:
        ConfigError: if Weights & Biases cannot be used.
    """

    def __init__(
        self,
        workdir: AnyPath,
        *,
        step: int,
        config: Mapping[str, Any] | None = None,
        wandb: str = "",
        leads: bool = True,
    ) -> None:
        self._writers: list[Writer] = []
        self._staged: StagedFolder | None = None
        if not leads:
            return
        self._staged = StagedFolder(workdir, (_FILE, "wandb/run_id"), ignores=("wandb",))
        folder = self._staged.path
        others: list[Writer] = []
        if wandb:  # opened first, since it may refuse
            from training.wandb_log import WandbLog

            others.append(WandbLog(folder, wandb, config or {}, name=workdir.name))
        self._writers = [_Lines(folder, step), _TensorBoard(folder, step), *others]

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Record what is known of a step: numbers, and lists and dicts of them.

        Raises:
            OSError: if the disk is full. The log is repaired when the run resumes.
            BucketError: if the bucket cannot be written.
        """
        for writer in self._writers:
            writer.write(step, values)
        self.flush(seconds=_UPLOADS)

    def flush(self, *, seconds: float = 0.0) -> None:
        """Write all lines to where the run resumes from, unless that was `seconds` ago.

        Raises:
            BucketError: if the bucket cannot be written.
        """
        if self._staged is not None:
            self._staged.upload(seconds=seconds)

    def image(self, step: int, name: str, image: Image) -> None:
        """Show a picture where there is a place for pictures."""
        for writer in self._writers:
            writer.image(step, name, image)

    def close(self) -> None:
        """Close everything."""
        for writer in self._writers:
            writer.close()
        if self._staged is not None:
            self._staged.close()


class _Lines:
    """metrics.jsonl."""

    def __init__(self, workdir: Path, step: int) -> None:
        self._path = workdir / _FILE
        if self._path.exists():
            lines = self._path.read_bytes().splitlines(keepends=True)
            kept = b"".join(line for line in lines if (_step(line) or step + 1) <= step)
            write_file(self._path, lambda temporary: temporary.write_bytes(kept))
        self._file = self._path.open("a")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        try:
            print(json.dumps({"step": step, **values}), file=self._file, flush=True)
        except OSError as error:  # print's error does not name the file
            raise OSError(error.errno, error.strerror, str(self._path)) from error

    def image(self, step: int, name: str, image: Image) -> None:
        """Do nothing: pictures have files of their own."""

    def close(self) -> None:
        with contextlib.suppress(OSError):  # from a line that `write` could not write
            self._file.close()


class _TensorBoard:
    """The folder of TensorBoard's events."""

    def __init__(self, workdir: Path, step: int) -> None:
        from tensorboardX import SummaryWriter  # here, since only training needs it

        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in numbers(values).items():
            self._board.add_scalar(name, value, step)

    def image(self, step: int, name: str, image: Image) -> None:
        self._board.add_image(name, image, step, dataformats="HWC")

    def close(self) -> None:
        self._board.close()


def read_log(workdir: AnyPath) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics.jsonl, without damaged ones; none if there is no file."""
    return [json.loads(line) for line in _lines(workdir) if _step(line) is not None]


def last_step(workdir: AnyPath) -> int:
    """Return the last step in the log of a run; 0 if there is none."""
    return max((_step(line) or 0 for line in _lines(workdir)), default=0)


def _lines(workdir: AnyPath) -> list[bytes]:
    try:
        with bucket_errors(workdir):
            return (workdir / _FILE).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []


def _step(line: bytes) -> int | None:
    """Return the step of a line; None for half a line of a killed run, or torn bytes."""
    try:
        return int(json.loads(line)["step"]) if line.endswith(b"\n") else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
