"""Trained networks that come with the project: a configuration and averaged parameters in float16.

    results/NAME/model/config.json        the resolved configuration
    results/NAME/model/parameters.npz     one array per parameter, named by its path, and the step

`results/run.py` writes them from runs. Rounding to float16 changes a parameter by at most 0.05%.
"""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from errors import ConfigError
from experiment.build import build
from experiment.configurations import with_younger_sections
from experiment.experiment import Experiment
from experiment.sampler import Checkpoint
from files.nested import flatten, unflatten
from files.paths import AnyPath
from files.writing import make_folder, write_json
from jobs.restore import Averaged, TrainedModel, experiment_of, load_model, restore_average
from jobs.workdir import Workdir

_RESULTS = Path(__file__).resolve().parent.parent / "results"
_STEP = "step"

# What `load` takes beside folders.
SHIPPED = {"digits": "vp_digits", "mnist": "vp_mnist", "mnist_likelihood": "vdm_mnist"}


def model_folder(result: str) -> Path:
    """Return the folder of the network that a result in `results` comes with."""
    return _RESULTS / result / "model"


def write_model(workdir: Workdir, folder: Path) -> None:
    """Write the main average of the latest good checkpoint of a run.

    Raises:
        WorkdirError, CheckpointError: if there is no run, or no checkpoint.
    """
    experiment = experiment_of(workdir)
    averaged = restore_average(experiment, workdir)
    params = flatten(experiment.parallel.fetch_tree(averaged.params))
    make_folder(folder)
    write_json(folder / "config.json", experiment.config)
    arrays: dict[str, Any] = {name: np.asarray(a, np.float16) for name, a in params.items()}
    arrays[_STEP] = averaged.step
    np.savez_compressed(folder / "parameters.npz", **arrays)


def read_model(folder: Path) -> TrainedModel:
    """Read a network that `write_model` has written."""
    config = json.loads((folder / "config.json").read_text())
    experiment = build(with_younger_sections(config))
    averaged = _read_average(experiment, folder)
    denoiser = experiment.model.denoiser(averaged.params)
    return TrainedModel.of(experiment, Checkpoint(step=averaged.step, denoiser=denoiser))


def read_parameters(experiment: Experiment, name: str) -> Averaged:
    """Read the parameters of a network in SHIPPED, for an experiment with the same network.

    Raises:
        ConfigError: if the experiment has another one.
    """
    result = SHIPPED[name]
    folder = model_folder(result)
    if differing := Workdir(folder).network_differences(experiment.config):
        raise ConfigError(
            f"--source={name} is another network: {'; '.join(differing)}. Give "
            f"--config=configs/{result}.py"
        )
    return _read_average(experiment, folder)


def _read_average(experiment: Experiment, folder: Path) -> Averaged:
    with np.load(folder / "parameters.npz") as arrays:
        stored = dict(arrays)
    step = int(stored.pop(_STEP))
    wanted = experiment.trainer.abstract_state().ema_params
    params = jax.tree.map(lambda leaf, array: array.astype(leaf.dtype), wanted, unflatten(stored))
    return Averaged(step, params)


def is_shipped(path: str | AnyPath) -> bool:
    """Whether this is the name of a network that comes with the project, and no file or folder."""
    return str(path) in SHIPPED and not Path(path).exists()


def load(path: str | Path, step: int | None = None, ema: str = "") -> TrainedModel:
    """Load the model of a run from its folder, or one that comes with the project.

    Args:
        path: the run's --workdir; or "digits", "mnist" (with classes) or "mnist_likelihood", if
            there is no folder of that name.
        step: of a run: step of the checkpoint; by default the latest good one.
        ema: of a run: the average of its parameters, as "rate_0.999" for one of
            `config.ema.more_rates`; by default the main one.

    Raises:
        WorkdirError, CheckpointError: if there is no run, or no such checkpoint.
        ConfigError: if there is no such average.
    """
    if is_shipped(path):
        return read_model(model_folder(SHIPPED[str(path)]))
    return load_model(path, step, ema)
