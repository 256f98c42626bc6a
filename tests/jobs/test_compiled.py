"""What XLA says about a program, and fields with which a step that is too large fits."""

import jax
import jax.numpy as jnp
import pytest
from command_line import TINY, configuration

from experiment.build import build
from jobs import compiled
from jobs.compiled import Attempts, Cost, cost_of
from jobs.programs import Program


def test_costs_of_a_matrix_product_are_those_counted_by_hand():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((64, 32), (32, 16))]
    cost = cost_of(Program(jax.jit(lambda a, b: a @ b), tuple(shapes), 64), 1)
    assert cost.flops == 2 * 64 * 32 * 16
    assert cost.kept == 4 * (64 * 32 + 32 * 16 + 64 * 16)
    assert cost.traffic >= cost.kept
    assert cost.peak == cost.kept + cost.temporary


GB = 1e9


def invented(experiment):
    """64 GB are kept and 64 GB are temporary, before anything is saved."""
    trainer, remat = experiment.trainer, experiment.model.network.remat
    kept = 64 * GB / (experiment.parallel.devices if trainer.sharding.divides else 1)
    temporary = 64 * GB / trainer.accumulate / (4 if remat else 1)
    return Cost(1.0, 1.0, int(kept), int(temporary), 16)


@pytest.mark.slow
def test_proposed_fields_are_the_first_that_fit_and_are_tried(monkeypatch, capsys):
    """On four devices with 4 images each."""
    monkeypatch.setattr(compiled, "train_cost", invented)
    experiment = build(configuration(TINY))
    attempts = Attempts(experiment, invented(experiment))
    sharded = {"parallel.shard": "params"}
    for limit, fields in (
        (90, sharded),
        (50, sharded | {"training.accumulate": 2}),
        (34, sharded | {"training.accumulate": 4}),
        (21, sharded | {"model.remat": True, "training.accumulate": 4}),
    ):
        found = attempts.fitting(limit * GB)
        assert found.fields == fields
        assert found.cost.peak <= limit * GB
        flags = " ".join(f"--config.{name}={value}" for name, value in fields.items())
        assert str(found).startswith(f"{flags} (")
    assert attempts.fitting(19 * GB) is None
    assert attempts.smallest().cost.peak == 20 * GB
    tried = [line for line in capsys.readouterr().err.splitlines() if line.startswith("trying")]
    assert len(tried) == len(set(tried)), "each is compiled once"
