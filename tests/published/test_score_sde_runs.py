"""Networks of score_sde at widths 32, 64 and 128, with and without an embedding.

    score_sde_runs.json.gz    fields of our networks; names and shapes of both codes' tensors; for
                              PyTorch also whether one is trained, and whether it is a parameter
    score_sde_runs.npz        outputs, in float32 of the JAX code, in float64 of the PyTorch code

The original networks wrote them, the JAX code with its flax 0.3.1 (on jax 0.4.13), whose norms have
the shape (1, 1, 1, channels). Weights are drawn from their names (`drawn`), as the generator did.
In float64, the generator computed the positional embedding in float64 too.
"""

import functools
import gzip
import json
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest
from networks import abstract_params, compiled

from files.nested import flatten, unflatten
from models.ddpm import DDPM
from models.ncsnpp import NCSNpp
from published import score_sde
from published.formats import read

DATA = Path(__file__).parent.parent / "fixtures" / "published"
RUNS = json.loads(gzip.decompress((DATA / "score_sde_runs.json.gz").read_bytes()))
PLAIN = "ncsnpp_noconv_32"  # resamp_with_conv = False, which no published configuration has
NAMES = [name for name in RUNS if name != PLAIN]
CODES = ("jax", "pytorch")


def network(name):
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in RUNS[name]["fields"].items()}
    return {"ddpm": DDPM, "ncsnpp": NCSNpp}[RUNS[name]["network"]](**fields)


def drawn(name, shape):
    """Weights of order 1 for a tensor, from its name."""
    u = np.random.default_rng(zlib.crc32(name.encode())).uniform(-1.0, 1.0, shape)
    leaf, flax = name.replace("/", ".").rsplit(".", 1)[-1], "/" in name
    if leaf == "scale" or (leaf == "weight" and len(shape) == 1):
        u = 1.0 + 0.5 * u
    elif leaf in ("bias", "b") or len(shape) == 1:
        u = 0.5 * u
    else:
        u = u * np.sqrt(3.0 / np.prod(shape[:-1] if flax else shape[1:]))
    return u.astype(np.float32)


def file(name, code, squeeze=False):
    """A training state; `squeeze` gives the norms of JAX's code the shape since flax 0.3.6."""
    run = RUNS[name]
    if code == "jax":
        params = {k: drawn(k, tuple(shape)) for k, shape in run["jax"].items()}
        if squeeze:
            params = {k: v.ravel() if "GroupNorm" in k else v for k, v in params.items()}
        nested = unflatten(params)
        return {"step": 7, "optimizer": {"target": nested}, "params_ema": nested}
    tensors = {k: drawn(k, tuple(shape)) for k, shape, _, parameter in run["pytorch"] if parameter}
    shadow = [tensors[k] for k, _, trained, _ in run["pytorch"] if trained]
    model = {f"module.{k}": v for k, v in tensors.items()} | {"module.sigmas": np.ones(1000)}
    return {"step": 7, "model": model, "ema": {"shadow_params": shadow}}


@functools.cache
def imported(name, code, squeeze=False):
    tree, own = file(name, code, squeeze), network(name)
    return score_sde.import_state(tree, own, 8, abstract_params(own), source="file").ema_params


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_network_computes_what_the_originals_do(name):
    x = np.random.default_rng(8).uniform(-1.0, 1.0, (2, 8, 8, 3)).astype(np.float32)
    fourier = RUNS[name]["fields"].get("embedding") == "fourier"
    cond = np.log([2.0, 20.0]) if fourier else np.array([249.75, 499.5])
    with jax.enable_x64(True), np.load(DATA / "score_sde_runs.npz") as outputs:
        for code, tolerance in (("jax", 1e-5), ("pytorch", 1e-10)):
            params = jax.tree.map(np.float64, imported(name, code))
            y = compiled(network(name))(params, np.float64(x), cond)
            expected = outputs[f"{name}_{code}"]
            assert np.abs(y - expected).max() < tolerance * np.abs(expected).max()


@pytest.mark.parametrize("name", ["ddpm_32", "ncsnpp_unconditional_fourier_32"])
def test_norms_of_later_versions_of_flax_are_the_same(name):
    old, new = (imported(name, "jax", squeeze) for squeeze in (False, True))
    assert jax.tree.all(jax.tree.map(np.array_equal, old, new))


def test_fixture_has_the_norms_of_the_version_that_the_original_pins():
    tree = flatten(read.read(DATA / "score_sde_jax.flax")["params_ema"])
    norms = [value.shape for name, value in tree.items() if "GroupNorm" in name]
    assert norms
    assert all(shape[:3] == (1, 1, 1) and len(shape) == 4 for shape in norms)


@pytest.mark.parametrize("name", ["ddpm_unconditional_32", "ncsnpp_unconditional_32"])
def test_export_of_an_unconditional_network_has_every_tensor_of_the_original(tmp_path, name):
    """In its order, which is that of the averages; what it never uses is zero."""
    params, own, path = imported(name, "pytorch"), network(name), tmp_path / "a.pth"
    score_sde.export_pytorch(own, 8, params, params, 7, path)
    tree, original = read.read(path), [row for row in RUNS[name]["pytorch"] if row[3]]
    assert list(tree["model"]) == [f"module.{key}" for key, *_ in original]
    trained = [tuple(shape) for _, shape, is_trained, _ in original if is_trained]
    assert [np.shape(value) for value in tree["ema"]["shadow_params"]] == trained
    assert not any(value.any() for key, value in tree["model"].items() if "Dense_0" in key)
    again = score_sde.import_state(tree, own, 8, abstract_params(own), source="again")
    assert jax.tree.all(jax.tree.map(np.array_equal, again.params, params))


@pytest.mark.parametrize("code", CODES)
def test_network_that_resamples_without_convolutions_is_refused(code):
    with pytest.raises(ValueError, match=r"^file: it changes .*resamp_with_conv = False"):
        imported(PLAIN, code)


@pytest.mark.parametrize("code", CODES)
@pytest.mark.slow
def test_network_with_other_groups_is_refused(code):
    """The file of the original does not show the groups, but the remedy names the field."""
    for name, groups, remedy in (("ddpm_64", 0, 32), ("ncsnpp_32", 8, 0)):
        own = network(name).clone(num_groups=groups)
        with pytest.raises(ValueError, match=rf"Set --config.model.num_groups={remedy}"):
            score_sde.import_state(file(name, code), own, 8, abstract_params(own), source="file")
    wide = network("ddpm_128").clone(num_groups=0)  # the same groups
    score_sde.import_state(file("ddpm_128", code), wide, 8, abstract_params(wide), source="file")
