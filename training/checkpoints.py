"""Checkpoints: Orbax behind three verbs, save, restore and close.

A checkpoint is a directory, `<directory>/<step>/`:

    state/        the pytree of arrays, written by Orbax (OCDBT: a dozen files, however many leaves)
    record/       one JSON object: the resolved config, and dtype and shape of every leaf
    SHA256SUMS    checksums of all these files, in the format of `sha256sum --check`

Orbax writes under a temporary name and renames it when complete. So a directory whose name is a
number is a finished save, and a killed process leaves older checkpoints untouched. (In a bucket, a
finished save is marked instead.) Orbax does not notice later damage: it loads array data with a
flipped bit without complaint, and it confuses a damaged file with a state of another shape. So the
files are verified before Orbax reads any, and the template is compared with the record:

    power cut                -> nothing older is deleted before the new checkpoint is on the disk
    damaged checkpoint       -> skipped with a warning, the last good one is loaded
    no checkpoint loads      -> CheckpointError, never a silent fresh start
    state of another shape   -> CheckpointError that names the parameter

The directory lies on a file system or in a bucket (`checkpoint_files.py` has the difference).
Several hosts share it and make the same calls: each writes and reads its part, and the first
decides, renames and deletes.
"""

import contextlib
import json
from typing import Any, NamedTuple, final

import jax
from absl import logging

from errors import BucketError, CheckpointError, MisfitError, require_in
from files.paths import AnyPath, as_path, bucket_errors, in_bucket
from files.text import one_line
from files.writing import make_folder, sync
from training import checkpoint_files
from training.checkpoint_files import DamagedError
from training.hosts import agreed, several
from training.quiet_orbax import orbax

_RECORD = "record/metadata"


class Restored(NamedTuple):
    """A checkpoint in memory: its step, its pytree of `jax.Array`, the config of its run."""

    step: int
    state: Any
    config: dict


class _PendingSave(NamedTuple):
    """A save that runs in the background, and the Orbax object that runs it."""

    step: int
    checkpointer: Any


@final
class Checkpoints:
    """The checkpoints of one run.

    Construction touches nothing on disk, so an evaluation may open the directory of a run that is
    being trained. `save` creates directories and removes what killed saves left.

    Args:
        directory: the folder of the checkpoints.
        keep: number of latest checkpoints that stay on disk, 0 for all.

    Raises:
        ValueError: if `keep` is negative.
        BucketError: if `directory` is a URL that cannot be used.
    """

    def __init__(self, directory: str | AnyPath, *, keep: int = 3) -> None:
        require_in("keep", keep, "[0, inf)")
        path = as_path(directory)
        self._directory = path if in_bucket(path) else path.absolute()
        self._keep = keep
        self._pending: _PendingSave | None = None
        self._corrupt: set[int] = set()

    def steps(self) -> tuple[int, ...]:
        """Return the steps of the finished checkpoints on disk, ascending."""
        return tuple(agreed(self._steps))

    def _steps(self) -> tuple[int, ...]:
        """Return what this host finds; only the first uses it."""
        return checkpoint_files.finished_steps(self._directory)

    def save(self, step: int, state: Any, config: dict) -> None:
        """Write a checkpoint in the background; the caller may donate `state` when this returns.

        Waits for the previous save first. A step that is already saved is left as it is, unless
        `restore` found it damaged.

        Args:
            step: the checkpoint's number, at least 0.
            state: a pytree of arrays.
            config: the resolved config, made of JSON types (tuples come back as lists).

        Raises:
            CheckpointError: if this save could not start, or the previous one failed, for example
                because the disk is full. Earlier checkpoints are intact, and `save` may be called
                again.
            TypeError: if `config` is not made of JSON types.
        """
        self.wait()
        if agreed(lambda: step in self._steps() and step not in self._corrupt):
            return
        record = {"config": json.loads(json.dumps(config)), "leaves": _describe(state)}
        ocp = orbax()
        checkpointer = self._make_checkpointer(step)
        try:
            make_folder(self._directory)
            self._tidy()
            checkpointer.save(
                self._directory / str(step),
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(_filled(state)), record=ocp.args.JsonSave(record)
                ),
            )
        except Exception as error:  # Orbax promises no type
            raise self._save_error(step, error) from error
        self._pending = _PendingSave(step, checkpointer)

    def wait(self) -> None:
        """Wait until the background save is on disk and superseded checkpoints are deleted.

        Raises:
            CheckpointError: if the background save failed; raised once.
        """
        if self._pending is None:
            return
        (step, checkpointer), self._pending = self._pending, None
        try:
            with contextlib.closing(checkpointer):
                checkpointer.wait_until_finished()
            sync(self._directory)  # the new name, before an older checkpoint is deleted
        except Exception as error:  # OSError, tensorstore's ValueError, ...
            raise self._save_error(step, error) from error
        self._delete_superseded(step)

    def config(self, step: int) -> dict:
        """Return the resolved config stored with the checkpoint of `step`.

        Raises:
            CheckpointError: if there is no such checkpoint, or its record is damaged.
        """
        return agreed(lambda: self._config(step))

    def _config(self, step: int) -> dict:
        try:
            return self._read_record(step)["config"]
        except DamagedError as error:
            raise self._load_error(step, error) from error

    def restore(
        self, like: Any, step: int | None = None, *, partial: bool = False
    ) -> Restored | None:
        """Load a checkpoint into fresh arrays, with the shapes, dtypes and shardings of `like`.

        Args:
            like: the template, a pytree of `jax.ShapeDtypeStruct` with shardings, or of arrays. A
                leaf without a sharding is loaded onto the first local device.
            step: the checkpoint to load. None loads the latest undamaged one, and names every
                damaged one in a warning.
            partial: whether the checkpoint may have leaves that `like` has not; they are not read.

        Returns:
            The checkpoint, bit for bit as saved, or None if `step` is None and none was ever saved.

        Raises:
            CheckpointError: if `step` is missing or damaged, if checkpoints exist and all are
                damaged, or if the checkpoint has other leaves, shapes or dtypes than `like`.
        """
        tried: dict[int, str] = {}
        while (found := agreed(lambda: self._verified(like, step, partial, tried))) is not None:
            chosen, config = found
            try:
                return Restored(chosen, self._load(chosen, like, partial), config)
            except DamagedError as error:
                if step is not None or several():  # others may have read what this host could not
                    raise self._load_error(chosen, error) from error
                self._skip(chosen, error, tried)
        return None

    def _verified(
        self, like: Any, step: int | None, partial: bool, tried: dict[int, str]
    ) -> tuple[int, dict] | None:
        """Return the step to load, undamaged and fitting, with its config; None if there is none.

        Adds to `tried`, which has the damage of steps that did not load.
        """
        if step is not None:
            try:
                return step, self._verify_all(step, like, partial)
            except DamagedError as error:
                raise self._load_error(step, error) from error
        # List anew each time, because a training process may add and delete checkpoints.
        while untried := [found for found in self._steps() if found not in tried]:
            try:
                return untried[-1], self._verify_all(untried[-1], like, partial)
            except DamagedError as error:
                self._skip(untried[-1], error, tried)
        if damaged := [found for found in self._steps() if found in tried]:
            reasons = "; ".join(f"{found}: {tried[found]}" for found in damaged)
            raise CheckpointError(
                f"no checkpoint in {self._directory} can be loaded ({reasons}). Put back a good "
                "copy, or move the directory away to start afresh"
            )
        return None

    def _skip(self, step: int, error: DamagedError, tried: dict[int, str]) -> None:
        tried[step] = str(error)
        logging.warning("checkpoint %s is skipped: %s", self._directory / str(step), error)

    def close(self) -> None:
        """Wait for the background save. The object may be used again.

        Raises:
            CheckpointError: if the background save failed.
        """
        self.wait()

    def _make_checkpointer(self, step: int) -> Any:
        """Return the Orbax object that runs one save."""
        ocp = orbax()

        def before_commit() -> None:
            # Orbax calls this in the background, on process 0, when all files of all processes are
            # written and before the rename, or the mark, that makes the checkpoint visible.
            checkpoint_files.seal(self._directory, step)

        options = ocp.options.AsyncOptions(
            post_finalization_callback=before_commit,
            # On a full disk the save must fail at once, or writers wait for a directory forever.
            create_directories_asynchronously=False,
        )
        return ocp.AsyncCheckpointer(
            _handler(ocp.StandardCheckpointHandler()), async_options=options
        )

    def _verify_all(self, step: int, like: Any, partial: bool) -> dict:
        """Verify a checkpoint; return its config.

        Raises:
            DamagedError: if it is damaged.
            CheckpointError: if it does not fit `like`.
        """
        self._verify(step)
        record = self._read_record(step)
        wanted, saved = _describe(like), record["leaves"]
        if partial:
            saved = {path: leaf for path, leaf in saved.items() if path in wanted}
        self._check_fit(step, saved, wanted)
        return record["config"]

    def _load(self, step: int, like: Any, partial: bool) -> Any:
        """Return the state in a verified checkpoint; raise DamagedError."""
        ocp, template = orbax(), jax.tree.map(_abstract, _filled(like))
        args = ocp.args.PyTreeRestore(
            template,
            ocp.checkpoint_utils.construct_restore_args(template),
            partial_restore=partial,
        )
        try:
            reader = ocp.Checkpointer(_handler(ocp.PyTreeCheckpointHandler()))
            with contextlib.closing(reader) as checkpointer:
                folder, items = self._directory / str(step), ocp.args.Composite(state=args)
                state = checkpointer.restore(folder, args=items)["state"]
        except Exception as error:  # Orbax promises no type
            if in_bucket(self._directory):  # the files were verified: the connection is to blame
                folder = self._directory / str(step)
                raise CheckpointError(
                    f"checkpoint {folder} cannot be read: {one_line(error)}. Run again"
                ) from error
            raise self._corrupt_error(step, one_line(error)) from error
        state = like._replace(**state) if _is_named(like) else state
        self._corrupt.discard(step)
        return state

    def _read_record(self, step: int) -> dict:
        """Return the record of a checkpoint, verified; raise DamagedError."""
        self._verify(step, _RECORD)
        file = self._directory / str(step) / _RECORD
        try:  # without Orbax, which would wait for other hosts
            with bucket_errors(file):
                content = file.read_bytes()
            return json.loads(content)
        except (OSError, ValueError) as error:
            raise self._corrupt_error(step, one_line(error)) from error

    def _verify(self, step: int, prefix: str = "") -> None:
        """Raise DamagedError unless the files below `prefix` are those that were written."""
        path = self._directory / str(step)
        if not path.is_dir():
            raise DamagedError("there is no such checkpoint")
        try:
            checkpoint_files.verify(path, prefix)
        except DamagedError as error:
            raise self._corrupt_error(step, str(error)) from error

    def _check_fit(self, step: int, saved: dict[str, str], wanted: dict[str, str]) -> None:
        """Raise CheckpointError unless the template has the leaves that were saved."""
        misfits = [f"{path} is only in the checkpoint" for path in saved if path not in wanted]
        misfits += [f"{path} is not in the checkpoint" for path in wanted if path not in saved]
        misfits += [
            f"{path} is {saved[path]} in the checkpoint, {leaf} here"
            for path, leaf in wanted.items()
            if saved.get(path, leaf) != leaf
        ]
        if misfits:
            more = f" (and {len(misfits) - 3} more)" if len(misfits) > 3 else ""
            raise MisfitError(
                f"checkpoint {self._directory / str(step)} does not fit this model: "
                f"{'; '.join(misfits[:3])}{more}. Use the config it was saved with, or another "
                "directory"
            )

    def _tidy(self) -> None:
        """Remove what killed saves and deletions left, and set damaged checkpoints aside."""
        if jax.process_index() == 0:
            checkpoint_files.tidy(self._directory, self._corrupt)
        self._corrupt.clear()

    def remove_after(self, step: int) -> None:
        """Delete the checkpoints of later steps: those of a run that starts anew from `step`."""
        self.wait()
        if jax.process_index() == 0:
            self._delete([found for found in self._steps() if found > step])

    def _delete_superseded(self, step: int) -> None:
        """Delete all except the `keep` latest checkpoints up to `step`, the one just saved.

        Later steps stay: a run restarted from an earlier one must not lose its own.
        """
        if jax.process_index() != 0 or self._keep == 0:
            return
        self._delete([found for found in self._steps() if found <= step][: -self._keep])

    def _delete(self, steps: list[int]) -> None:
        for old in steps:
            checkpoint_files.delete(self._directory, old)

    def _save_error(self, step: int, error: Exception) -> CheckpointError:
        """Remove the partial files of a failed save, and return the error to raise."""
        try:
            self._tidy()
        except (OSError, BucketError) as obstacle:
            logging.warning("cannot clean up %s: %s", self._directory, obstacle)
        return CheckpointError(
            f"saving checkpoint {self._directory / str(step)} failed: {one_line(error)}. "
            f"{self._on_disk()}. Free space there (or fix the cause) and run the same command "
            "again to resume"
        )

    def _load_error(self, step: int, error: DamagedError) -> CheckpointError:
        """Return the error to raise when the requested checkpoint does not load."""
        return CheckpointError(
            f"checkpoint {self._directory / str(step)} cannot be loaded: {error}. {self._on_disk()}"
        )

    def _on_disk(self) -> str:
        return f"Checkpoints on disk: {', '.join(map(str, self._steps())) or 'none'}"

    def _corrupt_error(self, step: int, reason: str) -> DamagedError:
        """Remember that `step` is damaged, unless a training process has just deleted it."""
        if not (self._directory / str(step)).is_dir():
            return DamagedError("it was deleted while it was read")
        self._corrupt.add(step)
        return DamagedError(reason)


def _is_named(state: Any) -> bool:
    return isinstance(state, tuple) and hasattr(state, "_fields")


def _filled(state: Any) -> Any:
    """Return a state without its empty fields, so that files need not know of them."""
    if not _is_named(state):
        return state
    return {name: field for name, field in state._asdict().items() if jax.tree.leaves(field)}


def _describe(tree: Any) -> dict[str, str]:
    """Return the leaves of a pytree: {".params['Conv_0']['kernel']": "float32[3,3,1,64]"}."""
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _abstract(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return the template of one leaf, with a sharding."""
    sharding = getattr(leaf, "sharding", None)
    if sharding is None:  # NumPy, or the result of jax.eval_shape
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _handler(state: Any) -> Any:
    """Return how Orbax writes or reads the two items of a checkpoint, given a handler of states."""
    ocp = orbax()
    return ocp.CompositeCheckpointHandler(state=state, record=ocp.JsonCheckpointHandler())
