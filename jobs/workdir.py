"""The folder of a run: its saved configuration and whether a new one may continue it."""

import json
from pathlib import Path
from typing import Any

from errors import WorkdirError
from files.writing import write_json

# Fields that do not change what is trained: a run may go on with other values of these.
_FREE_IN_TRAINING = (
    "classifier.",
    "continuous_bound.",
    "data.dir",
    "discrete_bound.",
    "eval.",
    "likelihood.",
    "moments.",
    "sampling.",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.log_every",
    "training.sample_count",
    "training.sample_every",
)

# Fields that say what a trained network is: who reads a run must give the same.
_FIXED_IN_READING = ("data.", "denoiser.", "ema.", "model.", "sde.")

# The same for a classifier of noisy images, which knows nothing of the run beside it; and those of
# its fields that matter in training alone.
_OF_CLASSIFIER = ("classifier.", "data.", "sde.")
_IN_ITS_TRAINING = ("batch_size", "clean_fraction", "dropout", "lr", "steps", "warmup")


# Fields that are younger than some runs, with what was done before there was a choice.
_BEFORE = {
    "denoiser.energy": False,
    "loss.name": "denoising",
    "sampling.guidance": "none",
    "sampling.task": "generate",
}


class Workdir:
    """Paths of a run's files, and its saved configuration. Making one touches nothing on disk.

    `classifies` says that it is the folder of a classifier of noisy images.
    """

    def __init__(self, path: str | Path, *, classifies: bool = False) -> None:
        self.path, self._classifies = Path(path), classifies
        self.config = self.path / "config.json"
        self.checkpoints = self.path / "checkpoints"
        self.samples = self.path / "samples"
        self.eval = self.path / "eval"
        self.moments = self.path / "moments"
        self.statistics = self.path / "statistics"
        self.classifier = self.path / "classifier"
        if self.path.exists() and not self.path.is_dir():
            raise WorkdirError(f"--workdir={path} is a file; give a folder")

    def check(self, config: dict, *, training: bool) -> None:
        """Raise WorkdirError unless `config` fits the run that is here, if one is.

        With `training` it must train the same; otherwise it must describe the same network.
        """
        if not self.config.exists():
            return
        try:
            saved = json.loads(self.config.read_text())
            if not isinstance(saved, dict):
                raise ValueError(f"expected an object, found {saved!r:.40}")
        except (OSError, ValueError) as error:  # what is not UTF-8 or not JSON is a ValueError
            raise WorkdirError(
                f"{self.config} is damaged ({error}); restore it, or use another --workdir"
            ) from error
        differing = [
            phrase
            for name, phrase in differences(saved, config)
            if not self._is_free(name, config=config, training=training)
        ]
        if differing:
            raise WorkdirError(
                f"--workdir={self.path} holds a run with another configuration: "
                + "; ".join(differing)
                + ". Give these values, or another --workdir"
            )

    def _is_free(self, name: str, *, config: dict, training: bool) -> bool:
        if name == "data.dir":
            return True
        if self._classifies:
            of_training = name.removeprefix("classifier.") in _IN_ITS_TRAINING
            return not name.startswith(_OF_CLASSIFIER) or (of_training and not training)
        if not training:
            return not name.startswith(_FIXED_IN_READING)
        # A longer run is the same run continued, unless the learning rate depends on its length.
        if name == "training.steps":
            return config["optim"]["decay"] == "constant"
        return name.startswith(_FREE_IN_TRAINING)

    def save_config(self, config: dict) -> None:
        """Write config.json, unless it already says the same."""
        if not self.config.exists() or differences(json.loads(self.config.read_text()), config):
            write_json(self.config, config)


def differences(saved: dict, given: dict) -> list[tuple[str, str]]:
    """Fields in which two nested dicts differ: (dotted name, a phrase with both values).

    Of a field that is new since the run was saved, its default is no difference: that is what was
    done before there was a choice.
    """
    old, new = flatten(saved), flatten(json.loads(json.dumps(given)))
    sections = {name.split(".")[0] for name in old}
    old |= {
        name: value
        for name, value in _BEFORE.items()
        if name not in old and name in new and name.split(".")[0] in sections
    }
    absent = "absent"
    return [
        (name, f"config.{name} was {value!r}, is {new.get(name, absent)!r}")
        for name, value in sorted(old.items())
        if value != new.get(name, absent)
    ]


def flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested dicts by dotted name, after `prefix`."""
    flat = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat
