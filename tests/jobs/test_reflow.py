"""Rounds of reflow lower the cost of transport, make paths straight, and keep the marginals."""

import numpy as np
import pytest

from configs import bridge_points
from experiment.build import build
from jobs.bridges import train_bridge
from jobs.restore import load_checkpoint
from jobs.translate import task_run
from jobs.workdir import Workdir
from metrics.sliced_wasserstein import sliced_wasserstein

SMALL = {
    "model.features": 64,
    "model.depth": 2,
    "data.samples": 2000,
    "training.batch_size": 128,
    "training.steps": 200,
    "training.checkpoint_every": 200,
    "training.sample_every": 0,
    "optim.lr": 5e-3,
    "optim.warmup": 20,
    "ema.rate": 0.98,
    "task.name": "translate",
    "task.input": "test",
}


def moved(folder, steps):
    """Return the test inputs, where a run moves them, and the test rows of its data."""
    experiment = built(steps)
    run = task_run(experiment, experiment.sampler.task, 200)
    found = run.run(load_checkpoint(experiment, Workdir(folder)))
    return found.arrays["input"], found.samples, experiment.data.splits.test


def built(steps):
    config = bridge_points.get_config("independent")
    for name, value in (SMALL | {"sampling.steps": steps}).items():
        section, field = name.split(".")
        config[section][field] = value
    return build(config)


def cost(x, y):
    return np.mean(np.sum((x - y) ** 2, axis=1))


@pytest.mark.slow
def test_reflow_lowers_the_transport_cost_and_the_marginals_stay(tmp_path):
    train_bridge(built(20), Workdir(tmp_path), rounds=2)
    costs, distances, of_one_step = [], [], []
    for number in (0, 1):
        folder = tmp_path / f"round_{number}"
        inputs, samples, data = moved(folder, 20)
        costs.append(cost(inputs, samples))
        distances.append(sliced_wasserstein(samples, data))
        of_one_step.append(sliced_wasserstein(moved(folder, 1)[1], data))
    independent = cost(inputs[::-1], samples)  # what the pairs of round 0 cost
    assert costs[1] < costs[0] < independent / 2
    assert distances[0] < 0.3
    assert distances[1] < distances[0] + 0.05
    assert of_one_step[1] < of_one_step[0] / 2
