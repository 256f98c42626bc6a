"""The folder of a run: its files, and whether a configuration fits the run in it."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from errors import CheckpointError, WorkdirError
from files.buckets import require_access
from files.locks import locked
from files.nested import flatten
from files.paths import AnyPath, as_path, bucket_errors
from files.writing import make_folder, write_json
from training.checkpoints import Checkpoints
from training.hosts import agreed

# Where images lie and how they are read: nothing depends on these.
_READING = ("data.dir", "data.memory_gb", "data.workers")

# A run continues training with other values of these fields: they change how it trains, but not
# what.
_MAY_CHANGE = (
    *_READING,
    "analytic_dpm.",
    "classifier.",
    "continuous_bound.",
    "dequantizer.",
    "diagnostics.",
    "discrete_bound.",
    "ema.snapshot_every",
    "eval.",
    "guidance.",
    "likelihood.",
    "logging.",
    "optim.",
    "parallel.",
    "perceptor.",
    "sampling.",
    "task.",
    "training.",
    "variance_head.",
)
# Except for these: where the run started, and what decides the state of its optimizer.
_FIXED = ("training.init_from", "optim.name")
# Of these, the result depends on the following, whose changes are reported and recorded.
_CHANGES_RESULT = (
    "optim.",
    *(f"training.{name}" for name in ("accumulate", "batch_size", "label_dropout", "steps")),
)

# What config.json and the records of checkpoints hold beside the configuration.
_CHANGES, _IMAGES = "changes", "images"

# Fields that describe a trained network: they must be those of the run to read its checkpoints. Of
# a student of progressive distillation, they include the only steps in which it can sample.
_DESCRIBE_NETWORK = (
    *("data.", "denoiser.", "ema.", "model.", "sde."),
    *("loss.student_steps", "loss.grid", "loss.t_min"),
)
# What decides which inputs a network takes, and what its parameters are.
_OF_NETWORK = (
    *("denoiser.", "model.", "sde."),
    *("data.centered", "data.channels", "data.image_size", "data.mean", "data.shape", "data.std"),
)
# Of _DESCRIBE_NETWORK, what a reader may change: where files lie, which noise likelihoods have, and
# what else a run keeps, which is read from its own configuration.
_READER_MAY_CHANGE = (
    *_READING,
    "data.dequantization",
    *("ema.lengths", "ema.more_rates", "ema.snapshot_every"),
)


class Part(NamedTuple):
    """A network that is trained in a folder within a run's folder, beside the model.

    Attributes:
        describe: fields that describe it, as _DESCRIBE_NETWORK.
        training: fields of its own section that matter in training only.
        ignored: fields that it does not depend on at all.
    """

    describe: tuple[str, ...]
    training: tuple[str, ...]
    ignored: tuple[str, ...] = _READING


# By the section of the configuration, which names the folder too.
PARTS = {
    "classifier": Part(
        describe=("classifier.", "data.", "sde."),
        training=("batch_size", "clean_fraction", "dropout", "lr", "steps", "warmup"),
    ),
    "dequantizer": Part(
        describe=("dequantizer.", "data.", "denoiser.", "model.", "sde."),
        training=("batch_size", "lr", "steps", "t_min", "warmup"),
        ignored=(*_READING, "data.dequantization"),
    ),
    "variance_head": Part(
        describe=("variance_head.", "data.", "denoiser.", "model.", "sde."),
        training=("batch_size", "lr", "steps", "t_min", "warmup"),
        ignored=(*_READING, "data.dequantization"),
    ),
    "perceptor": Part(
        describe=("perceptor.", "data."),
        training=("batch_size", "cutout_min", "lr", "noise", "steps", "warmup"),
    ),
}


class Workdir:
    """Paths of a run's files and its saved configuration. Construction writes nothing.

    Args:
        path: the folder, on this machine or in a bucket.
        part: the name in PARTS of what is trained in it; "" for the model.

    Raises:
        WorkdirError: if the path is a file.
        BucketError: if its bucket cannot be used, or it is another URL.
    """

    def __init__(self, path: str | AnyPath, *, part: str = "") -> None:
        self.path, self._part = as_path(path), part
        self._recovered: dict[str, Any] | None = None  # what a checkpoint had of config.json
        self.config = self.path / "config.json"
        self.classes = self.path / "classes.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.plots = self.path / "plots"
        self.samples = self.path / "samples"
        self.eval = self.path / "eval"
        self.moments = self.path / "moments"
        self.averages = self.path / "ema"
        self.snapshots = self.averages / "snapshots"
        self.statistics = self.path / "statistics"
        self.profile = self.path / "profile"
        require_access(self.path)
        if self.path.exists() and not self.path.is_dir():
            raise WorkdirError(f"--workdir={path} is a file; give a folder")

    @property
    def classifier(self) -> "Workdir":
        """The folder of the run's classifier."""
        return Workdir(self.path / "classifier", part="classifier")

    @property
    def dequantizer(self) -> "Workdir":
        """The folder of the run's dequantizer."""
        return Workdir(self.path / "dequantizer", part="dequantizer")

    @property
    def variance_heads(self) -> AnyPath:
        """The folder of the folders of variance heads, one for each checkpoint that has one."""
        return self.path / "variance_head"

    def variance_head(self, checkpoint: str) -> "Workdir":
        """Return the folder of the variance head of a checkpoint, by the name of the latter."""
        return Workdir(self.variance_heads / checkpoint, part="variance_head")

    @property
    def perceptor(self) -> "Workdir":
        """The folder of the run's perceptor."""
        return Workdir(self.path / "perceptor", part="perceptor")

    @property
    def clip(self) -> AnyPath:
        """The trained perceptor in this folder, in the layout of a CLIP."""
        return self.path / "clip"

    @contextmanager
    def locked(self, *, leads: bool = True) -> Iterator[None]:
        """Make the folder and keep other processes from training in it.

        Of several processes that train together, the one that leads holds the lock.

        Raises:
            WorkdirError: if another process trains in it; the message says which.
        """
        make_folder(self.path)
        with locked(self.path / ".lock", leads=leads):
            yield

    def require_writable(self) -> None:
        """Raise BucketError unless results can be written, before they are computed.

        It checks buckets only.
        """
        require_access(self.path, writes=True)

    def read_config(self) -> dict[str, Any]:
        """Return the saved configuration; the first of several hosts reads it.

        Raises:
            WorkdirError: if it is missing or damaged, and no checkpoint has it.
        """
        saved = agreed(self._read)
        return {k: v for k, v in saved.items() if k not in (_CHANGES, _IMAGES)}

    def _read(self, *, announces: bool = True) -> dict[str, Any]:
        """Return the content of config.json, or where that is lost, of a checkpoint's record.

        The latter is printed, where it `announces`.
        """
        try:
            if isinstance(saved := self._content(), dict):
                return saved
            raise ValueError(f"expected an object, found {saved!r:.40}")
        except FileNotFoundError as error:
            lost, problem = error, "there is no config.json"
        except (OSError, ValueError, RecursionError) as error:  # not UTF-8 or JSON: a ValueError
            lost, problem = error, f"{self.config} is damaged ({error})"
        if self._recovered is not None:
            return self._recovered
        checkpoints = Checkpoints(self.checkpoints)
        for step in reversed(checkpoints.steps()):
            with suppress(CheckpointError):
                self._recovered = checkpoints.config(step)
                if announces:
                    print(f"{problem}; using the configuration in the checkpoint of step {step}")
                return self._recovered
        if isinstance(lost, FileNotFoundError):
            raise WorkdirError(
                f"there is no run in {self.path} (no config.json); train or import it first, by "
                f"--mode=train or --mode=import with --workdir={self.path}"
            ) from lost
        raise WorkdirError(f"{problem}; restore it, or use another --workdir") from lost

    def _content(self) -> Any:
        with bucket_errors(self.config):
            content = self.config.read_bytes()
        return json.loads(content)

    def require_checkpoint(self, step: int | None = None) -> None:
        """Raise CheckpointError unless there is this checkpoint, or where it is None, any."""
        checkpoints = Checkpoints(self.checkpoints)
        if step is not None:
            checkpoints.config(step)
        elif not checkpoints.steps():
            raise CheckpointError(
                f"there is no checkpoint in --workdir={self.path} yet; run --mode=train or "
                "--mode=import first"
            )

    def check(self, config: dict[str, Any], *, training: bool) -> list[str]:
        """Raise WorkdirError unless `config` fits the run in the folder, if there is one.

        With `training` it must train the same thing; otherwise it must describe the same network.

        Returns:
            For each field that differs and that results depend on, a phrase with both values.
        """
        return agreed(lambda: self._check(config, training))

    def _check(self, config: dict[str, Any], training: bool) -> list[str]:
        if not self._holds_run():
            return []
        saved = self.read_config()
        found = differences(saved, config)
        refused = [
            phrase for name, phrase in found if not self._may_differ(name, training=training)
        ]
        if refused:
            way_out = ""
            if self._part:
                way_out = ", or remove this folder to train another one"
            elif training:
                way_out = (
                    ", or start from its checkpoint as a new run: --config.training.init_from="
                    f"{self.path} with a new --workdir"
                )
            raise WorkdirError(
                f"--workdir={self.path} holds a run with another configuration: "
                f"{'; '.join(refused)}. Give these values, or another --workdir{way_out}"
            )
        changed = [phrase for name, phrase in found if name.startswith(_CHANGES_RESULT)]
        old, new = flatten(saved, "."), flatten(config, ".")
        younger = [name for name in new if name not in old and new[name] is not None]
        return changed + [f"config.{name} is new, {new[name]!r}" for name in younger]

    def misfits(self, config: dict[str, Any]) -> list[str]:
        """Return a phrase for each field in which a saved `config` is that of another run."""
        return [
            phrase
            for name, phrase in differences(config, agreed(self._read))
            if not self._may_differ(name, training=True)
        ]

    def network_differences(self, config: dict[str, Any]) -> list[str]:
        """Return a phrase for each field of a saved network that `config` has otherwise."""
        found = differences(agreed(self._read), config)
        return [phrase for name, phrase in found if name.startswith(_OF_NETWORK)]

    def check_images(self, fingerprint: str) -> None:
        """Raise WorkdirError unless the run was trained on the images with this fingerprint."""
        agreed(lambda: self._check_images(fingerprint))

    def _check_images(self, fingerprint: str) -> None:
        if self._holds_run():
            saved = self._read().get(_IMAGES, fingerprint)
            if saved != fingerprint:
                raise WorkdirError(
                    f"--workdir={self.path} holds a run on other images: config.data gives images "
                    f"with fingerprint {fingerprint}, the run has seen {saved}. Put the old images "
                    "back, or give another --workdir"
                )

    def _holds_run(self) -> bool:
        return self.config.exists() or bool(Checkpoints(self.checkpoints).steps())

    def _may_differ(self, name: str, *, training: bool) -> bool:
        if self._part:
            part = PARTS[self._part]
            trains_only = name.removeprefix(f"{self._part}.") in part.training
            described = name.startswith(part.describe) and name not in part.ignored
            return not described or (trains_only and not training)
        if not training:
            return name in _READER_MAY_CHANGE or not name.startswith(_DESCRIBE_NETWORK)
        return name.startswith(_MAY_CHANGE) and name not in _FIXED

    def save_config(
        self,
        config: dict[str, Any],
        *,
        images: str | None = None,
        changes: Sequence[str] = (),
        step: int = 0,
    ) -> None:
        """Write config.json, unless it says the same already.

        Args:
            config: the resolved configuration.
            images: fingerprint of the training images, if they are known.
            changes: the result of `check`, recorded as changes at `step`.
            step: the step from which `config` applies.
        """
        agreed(lambda: self._save_config(config, images, changes, step))

    def _save_config(
        self, config: dict[str, Any], images: str | None, changes: Sequence[str], step: int
    ) -> None:
        saved = self._read(announces=False) if self._holds_run() else {}
        extra: dict[str, Any] = {_CHANGES: saved.get(_CHANGES, [])}
        extra[_CHANGES] = [*extra[_CHANGES], *({"step": step, "change": each} for each in changes)]
        extra[_IMAGES] = images or saved.get(_IMAGES)
        content = config | {name: value for name, value in extra.items() if value}
        with suppress(OSError, ValueError, RecursionError):  # missing or damaged: written below
            if self._content() == json.loads(json.dumps(content)):
                return
        write_json(self.config, content)


def run_and_step(name: str) -> tuple[str, int | None]:
    """Split RUN:STEP; the step is None where there is none."""
    run, colon, number = name.rpartition(":")
    return (run, int(number)) if colon and number.isdecimal() else (name, None)


def differences(saved: dict[str, Any], given: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the fields in which two nested dicts differ: dotted name, phrase with both values.

    A field that `saved` does not have is younger than it, and no difference.
    """
    old, new = flatten(saved, "."), flatten(json.loads(json.dumps(given)), ".")
    absent = "absent"
    return [
        (name, f"config.{name} was {value!r}, is {new.get(name, absent)!r}")
        for name, value in sorted(old.items())
        if value != new.get(name, absent)
    ]
