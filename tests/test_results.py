"""The records of results: their tables in the documentation, and the network that comes along."""

import json

import jax
import jax.numpy as jnp
import pytest
from command_line import ROOT

import scoresde as ss
from jobs.shipped import SHIPPED, model_folder
from numerics.arrays import expand_like
from results import run, tables


def test_the_tables_of_the_documentation_are_those_of_the_records():
    document = tables.DOCUMENT.read_text()
    assert tables.filled(document) == document


@pytest.mark.parametrize("name", tables.names())
def test_a_record_says_how_it_was_made(name):
    record = tables.read(name, "record")
    assert {cost["mode"] for cost in record["costs"]} == set(run.RECIPES[name].modes)
    for cost in record["costs"]:
        assert cost["commit"]
        assert run.RECIPES[name].config in cost["command"]
    assert tables.read(name, "eval")["step"] == record["step"]
    assert tables.read(name, "config")["training"]["steps"] == record["step"]
    assert (ROOT / "results" / name / "samples.png").stat().st_size > 1000
    assert tables.read_lines(ROOT / "results" / name / "curve.jsonl")


def test_networks_that_come_along_are_there_and_small():
    shipped = {name for name, recipe in run.RECIPES.items() if recipe.ships}
    assert shipped == set(SHIPPED.values())
    for name in shipped:
        assert (model_folder(name) / "parameters.npz").stat().st_size < 5e6
        json.loads((model_folder(name) / "config.json").read_text())


@pytest.mark.slow
def test_the_digits_load_by_name_and_denoise_digits():
    model = ss.load("digits")
    data = model.experiment.data
    x0 = jnp.asarray(model.from_data(data.as_samples(data.splits.test[:64])))
    eps = jax.random.normal(jax.random.key(0), x0.shape)
    t, sde = jnp.full(len(x0), 0.1), model.denoiser.sde
    x_t = expand_like(sde.alpha(t), x0) * x0 + expand_like(sde.sigma(t), x0) * eps
    found = jax.jit(model.denoiser.predict)(x_t, t).x0
    assert jnp.mean((found - x0) ** 2) < x0.var(axis=0).mean() / 3


@pytest.mark.slow
def test_mnist_loads_without_its_data():
    model = ss.load("mnist")
    assert model.shape == (28, 28, 1)
    x0 = jax.jit(model.denoiser.predict)(jnp.zeros((2, 28, 28, 1)), jnp.full(2, 0.5)).x0
    assert -1 <= x0.min() <= x0.max() <= 1
