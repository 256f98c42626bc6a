"""Checkpoints of Song et al.'s code bases, made by running these with random weights.

    score_sde_pytorch.pth     a training state of the PyTorch NCSN++
    score_sde_jax.flax        a training state of the JAX NCSN++, with other settings, written by
                              the flax 0.3.1 that it pins
    score_sde_outputs.npz     inputs, and outputs of these networks, with parameters and averages
    score_sde_names.json.gz   names and shapes of the parameters of many networks, in either code

Where a line of the originals does not run with today's libraries, it was mended for this.
"""

import functools
import gzip
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from networks import abstract_params, compiled

from models.ddpm import DDPM
from models.ncsn import NCSN
from models.ncsnpp import NCSNpp
from models.ncsnv2 import NCSNv2
from published import mapping, score_sde
from published.formats import read
from published.formats.torch_writer import write_torch

DATA = Path(__file__).parent.parent / "fixtures" / "published"
NAMES = json.loads(gzip.decompress((DATA / "score_sde_names.json.gz").read_bytes()))
CLASSES = {"ncsnpp": NCSNpp, "ddpm": DDPM, "ncsnv2": NCSNv2, "ncsn": NCSN}

TINY = {"features": 4, "channel_multipliers": (1, 1), "blocks_per_resolution": 1}
TINY |= {"attention_resolutions": (), "dropout": 0.0, "resample": "fir"}
PYTORCH = NCSNpp(
    **TINY, progressive_input="residual", progressive_output="output_skip", embedding="fourier"
)
JAX = NCSNpp(
    **TINY,
    residual_block="ddpm",
    progressive_input="input_skip",
    progressive_output="residual",
)
STATES = {
    "pytorch": (PYTORCH, "score_sde_pytorch.pth", 1234),
    "jax": (JAX, "score_sde_jax.flax", 77),
}


@functools.cache
def imported(name):
    network, file, _ = STATES[name]
    tree = read.read(DATA / file)
    return score_sde.import_state(tree, network, 8, abstract_params(network), source=file)


def equal(a, b):
    """Whether two trees are bitwise the same."""
    same = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    return jax.tree.all(same)


@pytest.mark.slow
@pytest.mark.parametrize("name", STATES)
def test_imported_network_computes_what_the_original_does(name):
    network, _, step = STATES[name]
    state = imported(name)
    assert state.step == step
    outputs = np.load(DATA / "score_sde_outputs.npz")
    x, cond = outputs[f"{name}_x"], outputs[f"{name}_cond"]

    for kind, params in (("params", state.params), ("ema", state.ema_params)):
        expected = outputs[f"{name}_{kind}"]
        error = np.abs(compiled(network)(params, x, cond) - expected).max() / np.abs(expected).max()
        assert error < 1e-5


@pytest.mark.parametrize("name", STATES)
def test_exported_state_is_imported_bit_for_bit(tmp_path, name):
    network, *_ = STATES[name]
    state = imported(name)
    path = tmp_path / "checkpoint.pth"
    score_sde.export_pytorch(network, 8, state.params, state.ema_params, state.step, path)
    tree = read.read(path)
    again = score_sde.import_state(tree, network, 8, abstract_params(network), source="again")
    assert again.step == state.step
    assert equal((again.params, again.ema_params), (state.params, state.ema_params))


def test_export_has_the_layout_of_the_original(tmp_path):
    """Except for the table of noise levels and Adam's options since PyTorch 1.7."""
    state, path = imported("pytorch"), tmp_path / "checkpoint.pth"
    score_sde.export_pytorch(
        PYTORCH, 8, state.params, state.ema_params, 1234, path, ema_decay=0.999
    )
    original, ours = read.read(DATA / "score_sde_pytorch.pth"), read.read(path)
    del original["model"]["module.sigmas"]
    assert list(ours["model"]) == list(original["model"])
    for mine, theirs in (
        (ours["model"], original["model"]),
        (ours["ema"]["shadow_params"], original["ema"]["shadow_params"]),
    ):
        assert equal(mine, theirs)
    assert {key: ours["ema"][key] for key in ("decay", "num_updates")} == {
        "decay": original["ema"]["decay"],
        "num_updates": 1234,
    }
    (mine,), (theirs,) = (tree["optimizer"]["param_groups"] for tree in (ours, original))
    assert mine == {key: theirs[key] for key in mine}
    assert ours["step"] == original["step"]


def test_export_refuses_averages_it_has_no_place_for(tmp_path):
    state = imported("pytorch")
    averages = jax.tree.map(lambda p: p * np.float32(2), state.params)
    with pytest.raises(ValueError, match=r"averages of fourier/frequencies differ"):
        score_sde.export_pytorch(PYTORCH, 8, state.params, averages, 1, tmp_path / "a.pth")
    assert list(tmp_path.iterdir()) == []


def test_network_that_does_not_run_there_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="'ncsn' cannot run in score_sde_pytorch"):
        score_sde.export_pytorch(NCSN(), 32, {}, {}, 1, tmp_path / "a.pth")


def build(case, implementation):
    lists = {name: tuple(v) for name, v in case["fields"].items() if isinstance(v, list)}
    fields = case["fields"] | lists
    if case["network"] in ("ncsn", "ncsnv2"):
        fields["implementation"] = implementation
    return CLASSES[case["network"]](**fields)


# Every parameter has a rule with its name in the original, and the shape it has there.
CASES = [(name, code) for name in NAMES for code in ("jax", "pytorch") if code in NAMES[name]]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "code"), CASES)
def test_rules_have_the_names_of_the_original(name, code):
    case = NAMES[name]
    network = build(case, code)
    # The implementation changes the parameters of NCSNv2 of size 64 alone.
    same = case["network"] != "ncsnv2" or case["fields"]["size"] != 64
    abstract = abstract_params(build(case, "pytorch") if same else network, case["image_size"])
    rules = getattr(score_sde, f"weights_{code}")(network, case["image_size"])
    originals = {original: np.zeros(shape, np.float32) for original, shape, *_ in case[code]}
    mapping.translate(rules, abstract, originals)
    names = [rule.theirs for rule in rules]
    if code == "pytorch":  # whose averages are in this order
        assert list(dict.fromkeys(names)) == list(originals)
        fixed = {original for original, _, trained in case[code] if not trained}
        assert fixed <= {score_sde._FREQUENCIES}


@pytest.mark.slow
def test_ncsn_state_is_a_list():
    """[model, optimizer, epoch, step, averages] of ermongroup/ncsnv2, or its first two."""
    case = NAMES["ncsn"]
    rng = np.random.default_rng(0)
    model = {f"module.{name}": rng.normal(size=shape) for name, shape, _ in case["pytorch"]}
    averages = {name.removeprefix("module."): value / 2 for name, value in model.items()}
    network = build(case, "pytorch")
    for tree, step, factor in (
        ([model, {}, 3, 99, averages], 99, 0.5),
        ([model | {"module.sigmas": np.ones(5)}, {}], 0, 1),
    ):
        abstract = abstract_params(network, case["image_size"])
        state = score_sde.import_state(tree, network, 16, abstract, source="ncsn.pth")
        assert state.step == step
        table = model["module.normalizer.embed.weight"].astype(np.float32)
        gamma, alpha, beta = np.split(table, 3, axis=1)
        norm = state.params["output_norm"]
        assert equal(norm, {"gamma": gamma, "alpha": alpha, "beta": beta})
        assert np.allclose(state.ema_params["output_norm"]["beta"], factor * beta)


@pytest.mark.parametrize(
    ("tree", "problem"),
    [
        ({"state_dict": {}, "epoch": 1}, "holds 'state_dict', 'epoch' at the top; a checkpoint of"),
        ({"params_ema": {}, "step": 1}, "step, optimizer with target, and params_ema"),
        ([1, 2], "model, optimizer, epoch, step and averages in a list"),
        (7, "holds no names at the top"),
        (
            {"model": {"a": np.ones(2)}, "ema": {"shadow_params": []}, "step": 1},
            "its 0 averages do not fit its 1 trained parameters",
        ),
    ],
)
def test_foreign_content_is_one_clear_error(tree, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        score_sde.import_state(tree, JAX, 8, {}, source="net.pth")
    assert str(caught.value).startswith("net.pth: ")


def test_states_are_recognised():
    for _, file, _ in STATES.values():
        assert score_sde.is_checkpoint(read.read(DATA / file))
    assert score_sde.is_checkpoint([{"module.begin_conv.weight": np.ones(1)}, {}])
    for other in ({"model": {}}, {"begin_conv.weight": 1}, [], [{"a": 1}], [1], 7, {"ema": 1}):
        assert not score_sde.is_checkpoint(other)


def test_wrong_settings_are_named():
    tree = read.read(DATA / "score_sde_pytorch.pth")
    with pytest.raises(
        ValueError, match=r"^net\.pth \(parameters\) does not fit.* surplus: all_mod"
    ):
        score_sde.import_state(tree, JAX, 8, abstract_params(JAX), source="net.pth")


@pytest.mark.parametrize(
    ("network", "code", "problem"),
    [
        (NCSNpp(num_classes=10), "jax", "config.model.num_classes=10"),
        (DDPM(decoder_attention="block"), "pytorch", "decoder_attention='block'.* 'resolution'"),
        (NCSNpp(input_frequencies=(1.0,)), "jax", r"input_frequencies=\(1\.0,\).* have \(\)"),
        (NCSN(), "jax", "'ncsn' cannot run in the JAX code of score_sde"),
        (NCSNv2(), "pytorch", "implementation='jax'; the checkpoint needs 'pytorch'"),
        (NCSNv2(implementation="pytorch"), "jax", "the checkpoint needs 'jax'"),
    ],
)
def test_network_that_they_do_not_have_is_refused(network, code, problem):
    with pytest.raises(ValueError, match=problem):
        getattr(score_sde, f"weights_{code}")(network, 32)


def test_frequencies_may_be_among_the_averages(tmp_path):
    """As in a code base where they are trained."""
    tree = read.read(DATA / "score_sde_pytorch.pth")
    model, shadow = tree["model"], tree["ema"]["shadow_params"]
    tree["ema"]["shadow_params"] = [model["module.all_modules.0.W"] * 2, *shadow]
    write_torch(tmp_path / "a.pth", tree)
    published = score_sde.load_pytorch(read.read(tmp_path / "a.pth"))
    assert equal(published.ema["all_modules.0.W"], published.params["all_modules.0.W"] * 2)
    assert equal(published.ema["all_modules.1.weight"], shadow[0])
