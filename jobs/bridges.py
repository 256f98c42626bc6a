r"""Rounds of training between two data sets, each on what the round before simulates.

With a diffusion g > 0, each round trains the other direction: its data are the ends of the round
before. The paths of a round are Brownian bridges between the ends of its pairs. This is diffusion
Schroedinger bridge matching (Shi et al. 2023, arXiv:2303.16852, Algorithm 1). What it fits depends
on the pairs of the first round:

    independent, minibatch_ot    iterative Markovian fitting: all marginals at both ends are right,
                                 and the path becomes the most likely one
    reference                    iterative proportional fitting, as of the diffusion Schroedinger
                                 bridge (De Bortoli et al. 2021, arXiv:2106.01357): all paths are
                                 likely, and the marginals become right

With the objective mean_matching, the rounds of iterative proportional fitting simulate chains
instead of pairs, as the diffusion Schroedinger bridge does. See `objectives.mean_matching`.

With g = 0 the rounds keep their direction, and each makes the paths straighter: reflow (Liu et al.
2022, arXiv:2209.03003).

Round k is a run of its own in the folder round_k: it resumes, is sampled and is evaluated like any
other. It starts with the parameters of the last round of its direction.
"""

from functools import partial

from errors import ConfigError, require_in
from experiment.build import build
from experiment.experiment import Experiment
from experiment.rounds import round_config
from jobs.train import train
from jobs.training_job import model_job
from jobs.workdir import Workdir
from training.checkpoints import Checkpoints


def train_bridge(experiment: Experiment, workdir: Workdir, *, rounds: int = 6) -> None:
    """Train rounds of bridges or flows between two data sets, each on pairs of the one before.

    They are rounds 0 .. rounds - 1 in folders of `workdir`, from the first that is not finished.

    Raises:
        ConfigError: unless there are two data sets, without pairs that are given.
        Others as `jobs.train.train`.
    """
    _require_two_sets(experiment)
    try:
        require_in("--rounds", rounds, "[1, inf)")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    last = []
    for number in range(rounds):
        of_round = build(round_config(experiment, partial(_path, workdir), number))
        path, (data, other) = _path(workdir, number), of_round.ends.sets
        folder = Workdir(path)
        last.append(
            f"{other} to {data}: --mode=sample --workdir={path} --config.data.name={data} "
            f"--config.coupling.data={other}"
        )
        if max(Checkpoints(folder.checkpoints).steps(), default=0) >= experiment.training.steps:
            print(f"round {number} is trained: {path}")
            continue
        print(f"round {number}, {other} to {data}: {path}")
        train(model_job(of_round), folder)
    print("\n".join(last[-2:]))


def _path(workdir: Workdir, number: int) -> str:
    return str(workdir.path / f"round_{number}")


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
