"""Resolving is pure and idempotent, and the configuration in config.json builds the same again."""

import copy
import json

import pytest
from command_line import TINY, configuration

from experiment.build import build
from experiment.configurations import load_configuration
from experiment.resolve import resolve
from sde_lib import SDES

CONFIGS = ("vp_digits.py", "ve_cifar10.py", "vp_cifar10.py:ddpm", "adm_imagenet.py")


def load(name):
    return load_configuration(f"configs/{name}")


@pytest.mark.parametrize("name", CONFIGS)
def test_resolve_changes_no_argument_and_nothing_twice(name):
    config = load(name)
    before = str(config)
    resolved = resolve(config)
    assert str(config) == before
    kept = copy.deepcopy(resolved)
    assert resolve(resolved) == kept
    assert resolved == kept
    # What is returned shares no part with what is given.
    resolved["sampling"]["steps"] = 12345
    assert resolve(kept)["sampling"]["steps"] != 12345
    assert str(config) == before


# Fields that the command line may set, for each rule of `resolve`.
CHANGES = [
    {"sampling.times": (1.0, 0.5, 0.01)},
    {"sampling.grid": "uniform"},
    {"sampling.steps": 7},
    {"sampling.s_churn": 0.0},
    {"task.name": "mri", "task.input": "test"},
    {"task.name": "mri", "task.input": "test", "task.method": "projection"},
    {"discrete_bound.steps": 5},
]


@pytest.mark.parametrize("changes", CHANGES, ids=lambda fields: ",".join(fields))
@pytest.mark.parametrize("name", ["vp_digits.py", "edm_imagenet_64.py", "vp_cifar10.py:ddpm"])
def test_resolve_is_pure_and_idempotent_for_what_the_command_line_sets(name, changes):
    config = load(name)
    config.update_from_flattened_dict(changes)
    before = str(config)
    resolved = resolve(config, changes.keys())
    kept = copy.deepcopy(resolved)
    for overrides in ((), changes.keys()):
        assert resolve(resolved, overrides) == kept
    assert resolved == kept
    assert str(config) == before


def test_resolve_settles_what_depends_on_other_fields():
    def settled(fields=()):
        resolved = resolve(configuration(TINY | dict(fields)))
        return resolved["sampling"]["clip"], resolved["discrete_bound"]["grid"]

    clip, grid = settled()
    assert (clip, grid) == (None, "log_snr")
    task = {"task.name": "mri", "task.input": "test"}
    assert settled(task)[0] == "range"
    assert settled(task | {"sampling.clip": "none"})[0] == "none"
    assert settled(task | {"task.method": "projection"})[0] is None
    assert settled({"task.name": "sdedit"})[0] is None
    chains = {name for name in SDES if settled({"sde.name": name})[1] != "log_snr"}
    assert chains == {"ddpm", "smld"}


def test_resolve_settles_the_kind_of_the_data_and_what_is_measured_of_it():
    resolved = resolve(load("vp_swiss_roll.py"))
    assert resolved["data"]["kind"] == "points"
    assert "nats_per_dim" in resolved["eval"]["metrics"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "given", "evaluations"),
    [
        ("vp_digits.py", {"times": (1.0, 0.5, 0.1, 0.01)}, 4),
        ("vp_cifar10.py:ddpm", {"grid": "ddim50"}, 50),
        ("vp_cifar10.py:ddpm", {"times": (1.0, 0.5, 0.0)}, 3),
        ("edm_imagenet_64.py", {"s_churn": 0.0}, 511),
        ("edm_imagenet_64.py", {"grid": "uniform"}, 511),
    ],
)
def test_fields_of_the_command_line_supersede_those_of_the_file(name, given, evaluations):
    config = load(name)
    config.sampling.update(given)
    before = str(config)
    experiment = build(config, overrides={f"sampling.{field}" for field in given})
    assert experiment.sampler.evaluations == evaluations
    assert str(config) == before


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_config_json_builds_the_same(name):
    """What a checkpoint carries is enough: it resolves to itself."""
    resolved = build(load(name)).config
    assert build(json.loads(json.dumps(resolved))).config == resolved


@pytest.mark.slow
@pytest.mark.parametrize(
    "fields",
    [
        {"sampling.times": (1.0, 0.5, 0.01), "sampling.steps": None, "sampling.grid": None},
        {"sampling.name": "ode", "sampling.steps": None},
        {"sampling.name": "analytic"},
        {"sampling.name": "heun", "sampling.grid": "karras"},
        {"sampling.clip": "dynamic"},
        {"sde.name": "ddpm", "sde.num_timesteps": 40, "sampling.grid": "ddim10"}
        | {"sampling.steps": None},
        {"task.name": "mri", "task.input": "test", "task.method": "dps"},
        {"task.name": "sdedit", "task.input": "test", "task.start": 0.5, "sampling.steps": 10},
        {"guidance.name": "classifier"},
    ],
    ids=lambda fields: ",".join(map(str, fields.values())),
)
def test_config_json_of_other_choices_builds_the_same(fields):
    config = configuration({"sampling.variant": None} | TINY | fields)
    experiment = build(config)
    again = build(json.loads(json.dumps(experiment.config)))
    assert again.config == experiment.config
    assert again.sampler.evaluations == experiment.sampler.evaluations
