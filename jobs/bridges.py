r"""Rounds of training between two data sets, each on the pairs that the round before simulates.

With a diffusion g > 0, each round trains the other direction: its data are the ends of the round
before. The paths of a round are Brownian bridges between the ends of its pairs. This is diffusion
Schroedinger bridge matching (Shi et al. 2023, arXiv:2303.16852, Algorithm 1). What it fits depends
on the pairs of the first round:

    independent, minibatch_ot    iterative Markovian fitting: all marginals at both ends are right,
                                 and the path becomes the most likely one
    reference                    iterative proportional fitting, as of the diffusion Schroedinger
                                 bridge (De Bortoli et al. 2021, arXiv:2106.01357): all paths are
                                 likely, and the marginals become right

With g = 0 the rounds keep their direction, and each makes the paths straighter: reflow (Liu et al.
2022, arXiv:2209.03003).

Round k is a run of its own in the folder round_k: it resumes, is sampled and is evaluated like any
other. It starts with the parameters of the last round of its direction.
"""

import copy
from typing import Any

from errors import ConfigError, require_in
from experiment.build import build
from experiment.experiment import Experiment
from jobs.train import train
from jobs.training_job import model_job
from jobs.workdir import Workdir
from training.checkpoints import Checkpoints


def train_rounds(experiment: Experiment, workdir: Workdir, rounds: int) -> None:
    """Train rounds 0 .. rounds - 1 in folders of `workdir`, from the first that is not finished.

    Raises:
        ConfigError: unless there are two data sets, without pairs that are given.
        Others as `jobs.train.train`.
    """
    _require_two_sets(experiment)
    try:
        require_in("--rounds", rounds, "[1, inf)")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    for number in range(rounds):
        config = round_config(experiment, workdir, number)
        folder = _folder(workdir, number)
        if max(Checkpoints(folder.checkpoints).steps(), default=0) >= experiment.training.steps:
            print(f"round {number} of {rounds} is trained: {folder.path}")
            continue
        print(f"round {number} of {rounds}, {_direction(config)}: {folder.path}")
        train(model_job(build(config)), folder)
    for number in range(max(rounds - 2, 0), rounds):
        config = round_config(experiment, workdir, number)
        given = f"--config.data.name={config['data']['name']} --config.coupling.data="
        given += config["coupling"]["data"]
        print(
            f"{_direction(config)}: --mode=sample --workdir={_folder(workdir, number).path} {given}"
        )


def round_config(experiment: Experiment, workdir: Workdir, number: int) -> dict[str, Any]:
    """Return the configuration of a round."""
    config = copy.deepcopy(experiment.config)
    if number == 0:
        return config
    alternates = experiment.ends.diffusion > 0
    data, coupling, training = config["data"], config["coupling"], config["training"]
    if alternates and number % 2:
        data["name"], coupling["data"] = coupling["data"], data["name"]
    coupling["name"] = "simulated"
    coupling["run"] = str(_folder(workdir, number - 1).path)
    coupling["regularization"] = None
    before = number - 2 if alternates else number - 1
    if before >= 0:
        training["init_from"] = str(_folder(workdir, before).path)
    return config


def _folder(workdir: Workdir, number: int) -> Workdir:
    return Workdir(workdir.path / f"round_{number}")


def _direction(config: dict[str, Any]) -> str:
    return f"from {config['coupling']['data']} to {config['data']['name']}"


def _require_two_sets(experiment: Experiment) -> None:
    ends = experiment.ends
    if ends.other is None:
        raise ConfigError(
            "--mode=train_bridge trains between two data sets; give config.coupling.data=NAME"
        )
    if ends.coupling.paired or ends.coupling.simulates:
        raise ConfigError(
            f"config.coupling.name={ends.name!r} gives the pairs, which --mode=train_bridge finds; "
            "start with independent, minibatch_ot or reference, or use --mode=train"
        )
