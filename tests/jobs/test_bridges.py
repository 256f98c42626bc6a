"""Rounds of training between two data sets: pairs, directions, resumption, and translation."""

import jax
import numpy as np
import pytest

from configs import bridge_points
from errors import ConfigError
from experiment.build import build
from experiment.rounds import round_config
from jobs.bridges import train_bridge
from jobs.pairs import simulate_pairs
from jobs.restore import load_checkpoint
from jobs.train import train
from jobs.training_job import model_job
from jobs.translate import task_run
from jobs.workdir import Workdir
from training.checkpoints import Checkpoints

TINY = {
    "model.features": 8,
    "model.depth": 1,
    "data.samples": 200,
    "training.batch_size": 8,
    "training.steps": 4,
    "training.checkpoint_every": 2,
    "training.steps_per_call": 1,
    "training.sample_every": 0,
    "sampling.steps": 3,
    "eval.batch_size": 48,
}


def built(variant, fields=()):
    made = bridge_points.get_config(variant)
    for name, value in (TINY | dict(fields)).items():
        section, field = name.split(".")
        made[section][field] = value
    return build(made)


def parameters(folder, step=None):
    """The parameters of a checkpoint, in one vector."""
    experiment = build(Workdir(folder).read_config())
    found = Checkpoints(Workdir(folder).checkpoints).restore(
        experiment.trainer.abstract_parameters(), step, partial=True
    )
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(found.state.params)])


def test_rounds_of_a_bridge_alternate_and_those_of_a_flow_do_not(tmp_path):
    bridge, flow, folder = built("dsbm"), built("independent"), "round_{}".format
    names = [round_config(bridge, folder, k)["data"]["name"] for k in range(4)]
    assert names == ["points:moons", "points:eight_gaussians"] * 2
    third = round_config(bridge, folder, 3)
    assert third["coupling"]["name"] == "simulated"
    assert third["coupling"]["run"].endswith("round_2")
    assert third["training"]["init_from"].endswith("round_1")
    second = round_config(flow, folder, 2)
    assert second["data"]["name"] == "points:moons"
    assert second["training"]["init_from"].endswith("round_1")
    with pytest.raises(ConfigError, match=r"give config\.coupling\.data=NAME"):
        train_bridge(built("independent", {"coupling.data": ""}), Workdir(tmp_path), rounds=2)


def test_rounds_of_mean_matching_take_the_round_before_for_their_teacher():
    first, folder = built("dsb"), "round_{}".format
    assert first.trainer.loss.teacher == ""
    third = round_config(first, folder, 3)
    assert third["loss"]["teacher"] == "round_2"
    assert third["coupling"] == round_config(first, folder, 1)["coupling"]
    assert third["coupling"]["name"] == "reference"
    assert third["data"]["name"] == "points:eight_gaussians"
    assert third["training"]["init_from"] == "round_1"


@pytest.mark.slow
def test_rounds_of_mean_matching_train_on_the_chains_of_their_teacher(tmp_path):
    train_bridge(built("dsb"), Workdir(tmp_path), rounds=2)
    first, last = (parameters(tmp_path / f"round_{number}") for number in range(2))
    assert np.isfinite(last).all()
    assert not np.array_equal(first, last)
    config = round_config(built("dsb"), lambda k: str(tmp_path / f"round_{k}"), 1)
    config["loss"]["teacher"] = str(tmp_path / "round_1")
    with pytest.raises(ConfigError, match=r"does not lead from points:eight_.* to points:moons;"):
        train(model_job(build(config)), Workdir(tmp_path / "wrong"))


@pytest.mark.slow
def test_a_run_of_pairs_resumes_bit_for_bit_and_translates(tmp_path, capsys):
    first = built("dsbm")
    train_bridge(first, Workdir(tmp_path / "whole"), rounds=2)
    train_bridge(first, Workdir(tmp_path / "whole"), rounds=2)
    assert "round 1 is trained" in capsys.readouterr().out
    config = round_config(first, lambda k: str(tmp_path / f"whole/round_{k}"), 1)
    for steps in (2, 4):
        config["training"]["steps"] = steps
        train(model_job(build(config)), Workdir(tmp_path / "stopped"))
    whole = parameters(tmp_path / "whole/round_1", 4)
    np.testing.assert_array_equal(parameters(tmp_path / "stopped", 4), whole)

    swapped = build(Workdir(tmp_path / "whole/round_1").read_config())
    pairs = simulate_pairs(swapped)
    assert pairs.shape == (180, 2, 2)
    # Its data are the rows at which round 0 started.
    np.testing.assert_allclose(pairs[:, 0], first.ends.other.splits.train, rtol=1e-6)
    config["coupling"]["data"] = "points:rings"
    wrong = build(config)
    with pytest.raises(ConfigError, match=r"and this run .* give the same two"):
        simulate_pairs(wrong)

    fields = {"task.name": "translate", "task.input": "test:0-3"}
    experiment = built("dsbm", fields)
    checkpoint = load_checkpoint(experiment, Workdir(tmp_path / "whole/round_0"))
    found = [task_run(experiment, experiment.sampler.task, n).run(checkpoint) for n in (4, 6)]
    assert found[0].samples.shape == (4, 2)
    np.testing.assert_allclose(found[1].samples[:4], found[0].samples, rtol=1e-5)
    assert "transport cost" in found[0].summary


@pytest.mark.slow
def test_a_flow_translates_back_what_it_has_translated(tmp_path):
    fields = {"task.name": "translate", "task.input": "test:0-3", "sampling.steps": 200}
    fields |= {"sampling.final_step": "none"}
    train(model_job(built("independent", {"training.steps": 2})), Workdir(tmp_path))
    there = built("independent", fields)
    checkpoint = load_checkpoint(there, Workdir(tmp_path))
    moved = task_run(there, there.sampler.task, 4).run(checkpoint)
    np.save(tmp_path / "moved.npy", moved.samples)
    back = {"task.direction": "from_data", "task.input": str(tmp_path / "moved.npy")}
    again = built("independent", fields | back)
    found = task_run(again, again.sampler.task, 4).run(checkpoint).samples
    np.testing.assert_allclose(found, moved.arrays["input"], atol=0.02)
