"""The records of results: their tables in the documentation, and the network that comes along."""

import json
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import ROOT
from PIL import Image

import scoresde as ss
from jobs.shipped import SHIPPED, model_folder
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


def test_networks_that_come_along_are_installed_with_the_package():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    results = ROOT / "results"
    assert (results / "__init__.py").exists()
    installed = {
        file for pattern in setuptools["package-data"]["results"] for file in results.glob(pattern)
    }
    for name in SHIPPED.values():
        assert set(model_folder(name).iterdir()) <= installed


def denoised_error(model, images, t):
    """The mean squared error of x0 from images with the noise of t, over their variance."""
    x0 = jnp.asarray(model.from_data(images))
    eps = jax.random.normal(jax.random.key(0), x0.shape)
    t = jnp.full(len(x0), t)
    found = jax.jit(model.denoiser.predict)(model.denoiser.sde.perturb(x0, t, eps), t).x0
    return jnp.mean((found - x0) ** 2) / x0.var(axis=0).mean()


@pytest.mark.slow
def test_the_digits_load_by_name_and_denoise_digits():
    model = ss.load("digits")
    data = model.experiment.data
    assert denoised_error(model, data.as_samples(data.splits.test[:64]), 0.1) < 1 / 3


@pytest.mark.slow
@pytest.mark.parametrize(("name", "t"), [("mnist", 0.2), ("mnist_likelihood", 0.9)])
def test_mnist_loads_without_its_data_and_denoises_samples(name, t):
    grid = np.asarray(Image.open(ROOT / "results" / SHIPPED[name] / "samples.png"))
    rows = [grid[start : start + 28] for start in range(0, 231, 29)]
    samples = np.array([row[:, start : start + 28] for row in rows for start in range(0, 231, 29)])
    assert denoised_error(ss.load(name), samples[..., None], t) < 1 / 3


def test_a_changed_recipe_leaves_the_record_and_the_network_alone(monkeypatch, tmp_path, capsys):
    calls, records = [], []
    monkeypatch.setattr(run, "ROOT", tmp_path)
    monkeypatch.setattr(run, "_run", lambda recipe, mode, workdir, flags: calls.append(workdir))
    monkeypatch.setattr(run, "_record", lambda workdir, folder: records.append(folder))
    for part in (run, "_ship"), (tables, "write"):
        monkeypatch.setattr(*part, lambda *given: pytest.fail("the record is changed"))
    for steps in (60, 90):
        run.main(["vp_digits", "--config.data.name=digits", f"--config.training.steps={steps}"])
        assert records[-1] == calls[-1] / "record"
        assert str(records[-1]) in capsys.readouterr().out
    folders = set(calls)
    assert len(folders) == 2, "a folder for each recipe"
    assert {folder.parent for folder in folders} == {tmp_path / "runs" / "results"}
    assert tmp_path / "runs" / "results" / "vp_digits" not in folders
