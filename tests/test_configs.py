"""The published configurations: all are present, with the published numbers of parameters."""

import functools
import json
import math
import shlex

import jax
import numpy as np
import pytest
from command_line import flags, run, write_images

import errors
from experiment import build
from experiment.configurations import (
    PROJECT,
    configuration_names,
    known_configurations,
    load_configuration,
)

# Parameters of the originals, built from their code. NCSN was counted after its repair; its number
# grows with the noise levels, which have separate normalizations.
DDPM, DDPMPP, DDPMPP_DEEP = 35_218_947, 61_804_419, 106_632_579
NCSN = {10: 34_428_675, 232: 44_828_931, 500: 57_384_195}
PUBLISHED = {
    "vp_cifar10:ddpm": DDPM,
    "vp_cifar10:ddpm_continuous": DDPM,
    "vp_cifar10:ddpm_unconditional": 32_329_347,
    "vp_cifar10:ddpmpp": DDPMPP,
    "vp_cifar10:ddpmpp_continuous": DDPMPP,
    "vp_cifar10:ddpmpp_deep": DDPMPP_DEEP,
    "vp_cifar10:ncsnpp": 62_693_251,
    "vp_cifar10:ncsnpp_continuous": 62_693_251,
    "vp_cifar10:ncsnpp_deep": 107_521_411,
    "subvp_cifar10:ddpm_continuous": DDPM,
    "subvp_cifar10:ddpmpp_continuous": DDPMPP,
    "subvp_cifar10:ddpmpp_deep": DDPMPP_DEEP,
    "subvp_cifar10:ncsnpp_continuous": 62_693_251,
    "subvp_cifar10:ncsnpp_deep": 107_521_411,
    "ve_cifar10:ddpm": DDPM,
    "ve_cifar10:ncsnpp": 62_693_251,
    "ve_cifar10:ncsnpp_continuous": 62_758_915,
    "ve_cifar10:ncsnpp_deep": 107_587_075,
    "ve_cifar10:ncsn": NCSN[10],
    "ve_cifar10:ncsn_5": NCSN[10],
    "ve_cifar10:ncsn_124": NCSN[232],
    "ve_cifar10:ncsn_1245": NCSN[232],
    "ve_cifar10:ncsnv2": 33_970_563,
    "ve_celeba:ncsnpp": 62_693_251,
    "ve_celeba:ncsn": NCSN[10],
    "ve_celeba:ncsn_5": NCSN[10],
    "ve_celeba:ncsn_124": NCSN[500],
    "ve_celeba:ncsn_1245": NCSN[500],
    "ve_celeba:ncsnv2": 33_970_563,
    "ve_bedroom:ncsnpp_continuous": 65_574_549,
    "ve_bedroom:ncsnv2": 83_445_379,
    "ve_church": 65_574_549,
    "ve_ffhq_256": 65_574_549,
    "ve_celebahq_256": 65_574_549,
    "ve_ffhq_1024": 105_785_896,
    "ve_celebahq_1024": 105_785_896,
    "vp_bedroom": 111_569_923,
    "vp_church": 111_569_923,
    "vp_celebahq_256": 111_569_923,
}

# Of other papers. Ours have a row for "no class", and EDM's frequencies are parameters. The matrix
# for EDM's 9 augmentation labels was counted apart.
ELSEWHERE = {
    "edm_cifar10:ddpmpp": 55_732_739 + 9 * 128,
    "edm_cifar10:ddpmpp_conditional": 55_734_147 + 9 * 128,
    "edm_cifar10:ncsnpp_conditional": 56_398_339 + 128 + 9 * 256,
    "edm_ffhq_64:ddpmpp": DDPMPP + 9 * 128,
    "iddpm_cifar10": 52_546_438,
    "adm_imagenet:64": 295_904_454 + 4 * 192,
    "adm_upsampler:64_256": 311_795_910 + 4 * 192,
    "adm_upsampler:128_512": 308_835_270 + 4 * 192,
    "edm_imagenet_64:adm": 295_904_454 + 4 * 192,
}


def load(name):
    file, colon, variant = name.partition(":")
    return load_configuration(f"configs/{file}.py{colon}{variant}")


@functools.cache
def count(model, image_size, data):
    """Count the parameters of a network; many configurations share one."""
    config = load("vp_digits")
    config.model, config.data = json.loads(model), json.loads(data)
    network, _, template = build.build_network(config)
    params = template(network)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def test_all_39_published_configurations_are_there():
    assert len(PUBLISHED) == 39
    known = {name.removeprefix("configs/").replace(".py", "") for name, _ in known_configurations()}
    assert PUBLISHED.keys() <= known


def test_files_that_start_with_an_underscore_are_no_configurations():
    assert "configs/vp_digits.py" in configuration_names()
    assert not [name for name in configuration_names() if name.startswith("configs/_")]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ve_ffhq_1024", "adm_imagenet:512"])
def test_the_largest_images_are_planned_on_a_laptop(name, monkeypatch):
    sizes = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 8 * 2**30 // 4096}
    monkeypatch.setattr(errors.os, "sysconf", sizes.__getitem__)
    assert build.build(load(name)).evaluation.samples == 50_000


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED | ELSEWHERE)
def test_network_has_the_published_size(name):
    config = load(name)
    model, data = (json.dumps(config[path].to_dict()) for path in ("model", "data"))
    assert count(model, config.data.image_size, data) == (PUBLISHED | ELSEWHERE)[name]


# Training. A tiny network on tiny images; all else is as published.

TINY = {
    "data.image_size": 8,
    "model.features": 8,
    "model.channel_multipliers": (1,),
    "model.blocks_per_resolution": 1,
    "model.attention_resolutions": (),
}
# With classes, and NCSN, which no other test trains as published. Compiling takes seconds, and for
# NCSN a minute.
TRACED = ("iddpm_imagenet_64:conditional", "edm_imagenet_64:edm", "ve_cifar10:ncsn")
# By main.py, one of each family, with the fields that a tiny network needs; of EDM and
# `vp_cifar10:ddpmpp` elsewhere.
FAMILIES = {
    "vp_cifar10:ddpm": {"model.num_groups": 0},
    "ve_cifar10:ncsnpp_continuous": {},
    "iddpm_cifar10:hybrid": {},
    "adm_lsun_256:bedroom": {"model.head_width": 8},
    "adm_imagenet:128": {"model.head_width": 8},
}


def tiny_trainer(name):
    """The trainer of a configuration, with a tiny network and batches of 8."""
    config = load(name)
    fields = {"model.heads": 0, "model.head_width": 8, "model.num_groups": 0}
    config.update_from_flattened_dict(TINY | fields | {"training.batch_size": 8})
    return build.build(config).trainer


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACED)
def test_a_step_of_a_published_recipe_keeps_the_form_of_the_state(name):
    trainer, key = tiny_trainer(name), jax.random.key(1)
    labels = jax.ShapeDtypeStruct((8,), np.int32) if load(name).model.num_classes else None
    batch = jax.ShapeDtypeStruct((8, 8, 8, 3), np.float32), labels
    first = jax.eval_shape(trainer._init_state, key)
    second, scalars = jax.eval_shape(trainer.step, key, first, *batch)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), first, second)
    )
    assert scalars["loss"].shape == ()


@pytest.mark.slow
def test_the_published_recipe_of_the_bound_trains():
    trainer = tiny_trainer("iddpm_cifar10:vlb")
    state, step = trainer.init_state(jax.random.key(0)), trainer.compiled_step()
    before = jax.device_get(state.params)
    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3))
    batch = trainer.parallel.put_batch((levels / 127.5 - 1).astype(np.float32))
    for _ in range(2):
        state, scalars = step(jax.random.key(1), state, batch)
    assert all(np.isfinite(value) for value in scalars.values())
    assert int(state.step) == 2
    pairs = zip(jax.tree.leaves(before), jax.tree.leaves(jax.device_get(state.params)), strict=True)
    moved = [bool(np.any(old != new)) for old, new in pairs]
    assert np.mean(moved) > 0.9


def tiny_fields(folder):
    """The fields of two steps on a few random images."""
    data = write_images(folder / "images.npz", 16, 8, size=8, channels=3, classes=4)
    cadences = {"training.sample_every": 0, "training.checkpoint_every": 2, "diagnostics.every": 0}
    return TINY | cadences | {"data.name": data, "training.steps": 2, "training.batch_size": 8}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_main_trains_a_published_recipe(tmp_path, name):
    file, _, variant = name.partition(":")
    fields = tiny_fields(tmp_path) | FAMILIES[name]
    call = run(*flags("train", tmp_path / "run", fields, f"configs/{file}.py:{variant}"))
    assert call.status == 0, call.stderr
    assert "trained 2 steps" in call.stdout


@pytest.mark.slow
def test_main_says_that_a_batch_is_smaller_and_the_hardware_another_than_published(tmp_path):
    fields = tiny_fields(tmp_path)
    call = run(*flags("train", tmp_path / "run", fields, "configs/edm_cifar10.py"))
    assert call.status == 0, call.stderr
    message = (
        "config.training.batch_size=8, but the published numbers of this configuration were made "
        "with 512; docs/recipes.md says what changes"
    )
    assert call.stderr.count(message) == 1
    hardware = "configuration were made on 8 V100, and this run is on 1 cpu; that changes the time"
    assert call.stderr.count(hardware) == 1
    again = run(*flags("train", tmp_path / "run", fields, "configs/edm_cifar10.py"))
    assert "is trained: step 2 of 2" in again.stdout
    assert "published" not in again.stderr, "nothing is trained"


# Ours, and one that only samples.
UNPUBLISHED = (
    "vp_digits",
    "consistency_digits",
    "vdm_digits",
    "energy_moons",
    "bridge_points",
    "bridge_digits",
    "vp_swiss_roll",
    "vp_waves",
    "subvp_mnist",
    "vdm_mnist",
    "vp_mnist",
    "vp_cifar10_small",
    "edm_imagenet_64.py:adm",
)


def test_published_configurations_have_their_published_batch():
    for name, config in known_configurations():
        published = config.training.published_batch_size
        assert published in (0, config.training.batch_size), name
        assert published or name.split("/")[1].startswith(UNPUBLISHED), name


# The column of docs/recipes.md, without what a user reports; of ADM, the kind alone.
HARDWARE = {
    "edm_cifar10": "8 V100",
    "edm_ffhq_64": "8 V100",
    "edm_afhqv2_64": "8 V100",
    "edm_imagenet_64.py:edm": "32 A100",
    "adm_imagenet.py:512": "V100",
}


def test_published_configurations_have_their_published_hardware():
    for name, config in known_configurations():
        file = name.split("/")[1]
        expected = [hardware for key, hardware in HARDWARE.items() if file.startswith(key)]
        assert [config.training.published_hardware] == (expected or [""]), name
    table = (PROJECT / "docs" / "recipes.md").read_text().partition("## What to expect")[2]
    for key, hardware in HARDWARE.items():
        start = f"| `{key.partition('.')[0]}"
        assert hardware in next(row for row in table.splitlines() if row.startswith(start))


# Options of EDM's train.py: its defaults, and those of the table in its README.
EDM_DEFAULTS = "--duration=200 --batch=512 --lr=10e-4 --ema=0.5 --dropout=0.13 --augment=0.12"
FACES = "--batch=256 --lr=2e-4 --dropout=0.05 --augment=0.15"
EDM = {
    "edm_cifar10:ddpmpp": "--cond=0",
    "edm_cifar10:ncsnpp_conditional": "--cond=1",
    "edm_ffhq_64:ddpmpp": f"--cond=0 {FACES}",
    "edm_ffhq_64:ncsnpp": f"--cond=0 {FACES}",
    "edm_afhqv2_64:ddpmpp": f"--cond=0 {FACES} --dropout=0.25",
    "edm_imagenet_64:edm": "--cond=1 --duration=2500 --batch=4096 --lr=1e-4 --ema=50 "
    "--dropout=0.10 --augment=0",
}


@pytest.mark.parametrize("name", EDM)
def test_edm_trains_with_the_options_of_its_readme(name):
    given = shlex.split(f"{EDM_DEFAULTS} {EDM[name]}")
    options = {key: float(value) for key, _, value in (o[2:].partition("=") for o in given)}
    config = load(name)
    assert bool(config.model.num_classes) == bool(options["cond"])
    assert config.training.batch_size == options["batch"]
    images = config.training.steps * config.training.batch_size
    assert 0 <= images - options["duration"] * 1e6 < options["batch"]
    assert config.optim.lr == options["lr"]
    assert config.optim.warmup_images == 10e6  # lr_rampup_kimg of training_loop.py
    assert config.ema.half_life_images == options["ema"] * 1e6
    assert config.ema.ramp_up == 0.05  # ema_rampup_ratio
    assert config.model.dropout == options["dropout"]
    assert config.augmentation.probability == options["augment"]
    assert config.model.augment_labels == (9 if options["augment"] else None)
    assert not config.data.random_flip
    assert config.data.dequantization == "none"
