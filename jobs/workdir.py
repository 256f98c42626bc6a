"""The folder of a run: its files, and whether a configuration fits the run in it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from errors import WorkdirError
from files.locks import locked
from files.nested import flatten
from files.writing import make_folder, write_json

# A run may continue training with other values of these fields.
_MAY_CHANGE = (
    "analytic_dpm.",
    "classifier.",
    "continuous_bound.",
    "data.dir",
    "discrete_bound.",
    "eval.",
    "guidance.",
    "likelihood.",
    "sampling.",
    "task.",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.log_every",
    "training.sample_count",
    "training.sample_every",
)

# Fields that describe a trained network: they must be those of the run to read its checkpoints.
_DESCRIBE_NETWORK = ("data.", "denoiser.", "ema.", "model.", "sde.")

# The same for the classifier of a run; some fields of its section matter in training only.
_DESCRIBE_CLASSIFIER = ("classifier.", "data.", "sde.")
_CLASSIFIER_TRAINING = ("batch_size", "clean_fraction", "dropout", "lr", "steps", "warmup")


class Workdir:
    """Paths of a run's files and its saved configuration. Construction touches no file.

    Args:
        path: the folder.
        holds_classifier: whether it is the folder of a noise-conditional classifier.

    Raises:
        WorkdirError: if the path is a file.
    """

    def __init__(self, path: str | Path, *, holds_classifier: bool = False) -> None:
        self.path, self._holds_classifier = Path(path), holds_classifier
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.jsonl"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.eval = self.path / "eval"
        self.moments = self.path / "moments"
        self.statistics = self.path / "statistics"
        if self.path.exists() and not self.path.is_dir():
            raise WorkdirError(f"--workdir={path} is a file; give a folder")

    @property
    def classifier(self) -> "Workdir":
        """The folder of the run's classifier."""
        return Workdir(self.path / "classifier", holds_classifier=True)

    @contextmanager
    def locked(self, *, leads: bool = True) -> Iterator[None]:
        """Make the folder and keep other processes from training in it.

        Of several processes that train together, the one that leads holds the lock.

        Raises:
            WorkdirError: if another process trains in it; the message says which.
        """
        make_folder(self.path)
        with locked(self.path / ".lock") if leads else nullcontext():
            yield

    def read_config(self) -> dict[str, Any]:
        """Return the saved configuration.

        Raises:
            WorkdirError: if it is missing or damaged.
        """
        try:
            saved = json.loads(self.config.read_text())
            if not isinstance(saved, dict):
                raise ValueError(f"expected an object, found {saved!r:.40}")
        except FileNotFoundError as error:
            raise WorkdirError(
                f"there is no run in {self.path} (no config.json); run --mode=train or "
                "--mode=import first"
            ) from error
        except (OSError, ValueError) as error:  # text that is not UTF-8 or JSON is a ValueError
            raise WorkdirError(
                f"{self.config} is damaged ({error}); restore it, or use another --workdir"
            ) from error
        return saved

    def check(self, config: dict[str, Any], *, training: bool) -> None:
        """Raise WorkdirError unless `config` fits the run in the folder, if there is one.

        With `training` it must train the same; otherwise it must describe the same network.
        """
        if not self.config.exists():
            return
        differing = [
            phrase
            for name, phrase in differences(self.read_config(), config)
            if not self._may_differ(name, config=config, training=training)
        ]
        if differing:
            raise WorkdirError(
                f"--workdir={self.path} holds a run with another configuration: "
                f"{'; '.join(differing)}. Give these values, or another --workdir"
            )

    def _may_differ(self, name: str, *, config: dict[str, Any], training: bool) -> bool:
        if name == "data.dir":
            return True
        if self._holds_classifier:
            trains_only = name.removeprefix("classifier.") in _CLASSIFIER_TRAINING
            return not name.startswith(_DESCRIBE_CLASSIFIER) or (trains_only and not training)
        if not training:
            return not name.startswith(_DESCRIBE_NETWORK)
        # A longer run continues the shorter one, unless the learning rate depends on its length.
        if name == "training.steps":
            return config["optim"]["decay"] == "constant"
        return name.startswith(_MAY_CHANGE)

    def save_config(self, config: dict[str, Any]) -> None:
        """Write config.json, unless it says the same already."""
        if not self.config.exists() or differences(json.loads(self.config.read_text()), config):
            write_json(self.config, config)


def differences(saved: dict[str, Any], given: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the fields in which two nested dicts differ: dotted name, phrase with both values."""
    old, new = flatten(saved, "."), flatten(json.loads(json.dumps(given)), ".")
    absent = "absent"
    return [
        (name, f"config.{name} was {value!r}, is {new.get(name, absent)!r}")
        for name, value in sorted(old.items())
        if value != new.get(name, absent)
    ]
