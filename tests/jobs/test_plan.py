"""--mode=check: what a configuration would do, before it does it."""

import jax
import numpy as np
import pytest
from command_line import TINY, UNET, configuration

from experiment.build import build
from jobs.plan import _memory, describe


@pytest.mark.slow
def test_memory_estimate_is_near_what_the_compiler_plans():
    """At most; within a factor of two of XLA's own plan for the same step on one device's share."""
    fields = UNET | {"model.features": 32, "model.channel_multipliers": (1, 2)}
    experiment = build(configuration(fields | {"training.batch_size": 64}))
    trainer = experiment.trainer
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = jax.ShapeDtypeStruct((64, 8, 8, 1), np.float32, sharding=experiment.parallel.split)
    plan = trainer.compiled_step().lower(key, trainer.abstract_state(), batch).compile()
    memory = plan.memory_analysis()
    planned = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    estimate = float(_memory(experiment).split()[1]) * 1e9
    assert planned / 2 < estimate + 0.005e9
    assert estimate - 0.005e9 < planned * 2


@pytest.mark.slow
def test_task_and_guidance_are_named_and_counted():
    fields = {
        "model.num_classes": 10,
        "guidance.name": "classifier_free",
        "task.name": "mri",
        "task.input": "test",
    }
    text = describe(build(configuration(TINY | fields)))
    lines = [line.split("  ", 1) for line in text.splitlines() if "  " in line]
    rows = {name: value.strip() for name, value in lines}
    assert rows["sampler"] == "pc: 10 network evaluations per image"
    assert rows["noise left in samples"] == "0.0 gray levels of 256 (rms)"
    assert rows["task"] == "mri"
    assert rows["guidance"] == "classifier_free"


@pytest.mark.slow
def test_averages_are_counted_with_the_disk_of_their_snapshots():
    fields = TINY | {"ema.more_rates": (0.9,), "ema.snapshot_every": 4}  # 30 steps, 8 snapshots
    experiment = build(configuration(fields))
    count = sum(leaf.size for leaf in jax.tree.leaves(experiment.trainer.abstract_state().params))
    size = f"{8 * 2 * 4 * count / 1e9:.2f} GB"
    assert f"3 besides the main one; 8 snapshots of 2, {size}" in describe(experiment)
    assert "averages " not in describe(build(configuration(TINY)))
