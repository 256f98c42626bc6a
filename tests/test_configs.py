"""The published configurations: all are present, with the published numbers of parameters."""

import functools
import json
import math

import jax
import pytest

import errors
from experiment import build
from experiment.configurations import (
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

# Of other papers. Ours have a row for "no class", and EDM's frequencies are parameters.
ELSEWHERE = {
    "edm_cifar10:ddpmpp": 55_732_739,
    "edm_cifar10:ddpmpp_conditional": 55_734_147,
    "edm_cifar10:ncsnpp_conditional": 56_398_339 + 128,
    "edm_ffhq_64:ddpmpp": DDPMPP,
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
