"""Networks of every family: at several widths, of OpenAI, and what all imports have in common.

    widths_names.json.gz    names and shapes at widths 32, 64 and 128, and config.json of diffusers
    widths_outputs.npz      outputs in float64, of EDM's networks without their preconditioners, and
                            of diffusers 0.14.0, those of NCSN++ times sigma

How the outputs were made is in published_families.py.
"""

import gzip
import json

import jax
import numpy as np
import pytest
from networks import abstract_params, compiled
from published_families import (
    EDM_ADM,
    EDM_SONG,
    GOOGLE,
    GUIDED,
    LARGE,
    NCSN,
    OPENAI,
    SMALL,
    assert_close,
    assert_equal,
    broken,
    classes_in_float64,
    imported,
    tree,
)
from published_files import DATA, LABEL, SIZE, drawn, images

from errors import FileError
from models.adm import ADM
from models.adm_classifier import ADMClassifier
from models.ncsnpp import NCSNpp
from published import diffusers, edm, openai

IMPROVED = ADM(**OPENAI, heads=4, scale_shift=False, resample="conv")
CLASSIFIER = ADMClassifier(**OPENAI, num_classes=5)


# OpenAI.


@pytest.mark.slow
@pytest.mark.parametrize(("name", "order"), [("guided", "legacy"), ("guided_new", "new")])
def test_guided_diffusion_computes_as_the_original(name, order):
    params = imported(openai, tree("guided"), GUIDED, attention_order=order)
    assert_close(compiled(GUIDED)(params, images(), LABEL, np.array([0, 2])), name)
    assert not params["classes"]["table"][-1].any()


@pytest.mark.slow
def test_improved_diffusion_computes_as_the_original():
    params = imported(openai, tree("improved"), IMPROVED)
    assert_close(compiled(IMPROVED)(params, images(), LABEL), "improved")


@pytest.mark.slow
def test_classifier_computes_as_the_original():
    content = tree("classifier_attention")
    params = openai.import_classifier(
        content, CLASSIFIER, SIZE, abstract_params(CLASSIFIER), source="file"
    )
    assert_close(compiled(CLASSIFIER)(params, images(), LABEL), "classifier_attention")
    with pytest.raises(
        FileError, match=r"not a state dict of a UNetModel .* which has output_blocks"
    ):
        imported(openai, content, GUIDED)


def test_networks_that_openai_would_normalize_otherwise_are_refused():
    narrow = GUIDED.clone(features=64)
    with pytest.raises(
        ValueError,
        match=r"16 groups of 64 .*OpenAI have 32. Set --config.model.num_groups=32",
    ):
        openai.weights(narrow, SIZE)
    assert openai.weights(narrow.clone(num_groups=32), SIZE)
    with pytest.raises(ValueError, match=r"attention_order='old' is unknown.*legacy, new"):
        openai.weights(GUIDED, SIZE, "old")


# EDM and diffusers at widths 32, 64 and 128.

WIDTHS = json.loads(gzip.decompress((DATA / "widths_names.json.gz").read_bytes()))
WIDTHS_LABELS = np.array([2, 0])
WIDTHS_SIGMA = np.array([0.084, 0.707])
# One of each kind: double precision proves the formulas of all, and the others differ in width.
IN_SINGLE_PRECISION = (
    *("edm_ddpmpp_32_classes", "edm_ncsnpp_32_classes", "edm_adm_32_classes"),
    *("diffusers_ddpm_32", "diffusers_ncsnpp_32"),
)


def of_a_width(name):
    """Our network, its imported parameters and the file's content of a case of the fixture."""
    kind, width, *classes = name.split("_")[1:]
    if name.startswith("diffusers"):
        content = {"config": WIDTHS[name]["config"], "tensors": drawn(WIDTHS[name]["tensors"])}
        network = NCSNpp(dropout=0.0, **diffusers.settings(content["config"]))
        return network, imported(diffusers, content, network), content
    fields = SMALL | {"features": int(width), "channel_multipliers": (1, 2)}
    fields |= {"num_classes": 3 if classes else 0}
    kinds = {"ddpmpp": (NCSNpp, {}), "ncsnpp": (NCSNpp, NCSN), "adm": (ADM, {})}
    network_class, options = kinds[kind]
    network, content = network_class(**fields, **options), drawn(WIDTHS[name])
    return network, imported(edm, content, network), content


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDTHS)
def test_a_network_of_any_width_computes_as_the_original(name):
    network, params, content = of_a_width(name)
    with np.load(DATA / "widths_outputs.npz") as outputs:
        expected = outputs[name]
    if "map_label.bias" in content:  # its sum is not a float32, as our parameters are
        params = params | {"classes": {"table": classes_in_float64(content)}}
    labels = [WIDTHS_LABELS] if network.num_classes else []
    single = [(False, 1e-5)] if name in IN_SINGLE_PRECISION else []
    for x64, tolerance in ((True, 1e-10), *single):
        with jax.enable_x64(x64):
            dtype = np.float64 if x64 else np.float32
            x, cond = dtype(images()), dtype(LABEL)
            if name.startswith("diffusers_ncsnpp"):
                x, cond = 2 * x - 1, np.log(dtype(WIDTHS_SIGMA))  # center_input_sample
            elif name.startswith(("edm_ncsnpp", "edm_adm")):
                cond = dtype([-1.0, 0.75])
            y = compiled(network)(jax.tree.map(dtype, params), x, cond, *labels)
            assert y.dtype == dtype
            assert np.max(np.abs(y - expected)) < tolerance * np.max(np.abs(expected))


@pytest.mark.parametrize("name", [name for name in WIDTHS if "pp_32_classes" in name])
def test_classes_of_edm_are_the_nearest_float32(name):
    _, params, content = of_a_width(name)
    assert np.array_equal(params["classes"]["table"], np.float32(classes_in_float64(content)))


# All of them.

FAMILIES = {
    "edm_song": (edm, EDM_SONG, "model.enc.8x8_conv.weight"),
    "edm_adm": (edm, EDM_ADM, "model.enc.8x8_conv.weight"),
    "guided": (openai, GUIDED, "input_blocks.0.0.weight"),
    "improved": (openai, IMPROVED, "input_blocks.0.0.weight"),
    "diffusers_ddpm": (diffusers, GOOGLE, "conv_in.weight"),
    "diffusers_ncsnpp": (diffusers, LARGE, "conv_in.weight"),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_is_checkpoint_its_files_alone(name):
    known = {family for family in (edm, openai, diffusers) if family.is_checkpoint(tree(name))}
    assert known == {FAMILIES[name][0]}


@pytest.mark.parametrize("content", [{"model": {}, "ema": {}, "step": 0}, {}, [], None, "text"])
def test_what_no_family_knows_is_refused(content):
    for family, network in ((edm, GUIDED), (openai, GUIDED), (diffusers, GOOGLE)):
        assert not family.is_checkpoint(content)
        with pytest.raises(FileError, match=r"^file: it is not "):
            imported(family, content, network)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_both_sets_are_equal_and_share_no_memory(name):
    family, network, _ = FAMILIES[name]
    state = family.import_state(tree(name), network, SIZE, abstract_params(network), source="file")
    assert state.step == 0
    assert_equal(state.params, state.ema_params)
    pairs = zip(jax.tree.leaves(state.params), jax.tree.leaves(state.ema_params), strict=True)
    assert not any(np.shares_memory(*pair) for pair in pairs)


@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_that_do_not_fit_are_named_with_ours(name):
    family, network, theirs = FAMILIES[name]
    content = tree(name)
    tensors = content.get("tensors", content)
    features = tensors[theirs].shape[0]
    shown = theirs.removeprefix("model.")
    for changes, message in (
        ({theirs: None}, rf"1 missing: {shown} for input_conv/kernel \(3, 3, 3, {features}\)"),
        ({"surplus.weight": np.zeros(2)}, r"1 surplus: surplus.weight \(2,\)"),
        (
            {theirs: tensors[theirs][:, :1]},
            rf"{shown} \({features}, 1, 3, 3\) for input_conv/kernel \(3, 3, 3, {features}\)",
        ),
    ):
        wrong = broken(tensors, **changes)
        with pytest.raises(ValueError, match=rf"^file does not fit .*{message}"):
            imported(
                family, content | {"tensors": wrong} if content is not tensors else wrong, network
            )
