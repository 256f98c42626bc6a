"""The configurations of rounds of training, each on what the round before simulates."""

import copy
from collections.abc import Callable
from typing import Any

from experiment.experiment import Experiment


def round_config(
    experiment: Experiment, folder: Callable[[int], str], number: int
) -> dict[str, Any]:
    """Return the configuration of round `number`, from 0; round k has its run in `folder(k)`.

    With a diffusion, odd rounds have the data sets of the experiment in each other's places. A
    round starts with the parameters of the last one with its own places. It takes pairs of the
    round before, or has it for a teacher, which simulates chains.
    """
    config = copy.deepcopy(experiment.config)
    if number == 0:
        return config
    alternates = experiment.ends.diffusion > 0
    data, coupling = config["data"], config["coupling"]
    if alternates and number % 2:
        data["name"], coupling["data"] = coupling["data"], data["name"]
    if experiment.trainer.loss.simulates:
        config["loss"]["teacher"] = folder(number - 1)
    else:
        coupling |= {"name": "simulated", "run": folder(number - 1), "regularization": None}
    before = number - (2 if alternates else 1)
    if before >= 0:
        config["training"]["init_from"] = folder(before)
    return config
