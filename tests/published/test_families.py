"""Networks of EDM, OpenAI and diffusers: imported, they compute what the originals compute.

References are outputs of the originals themselves in double precision, by PyTorch. Of most networks
the fixtures hold the names and shapes only: `drawn` makes the same weights there and here. Two are
files as torch.save and diffusers write them.

    widths_names.json.gz    names and shapes at widths 32, 64 and 128, and config.json of diffusers
    widths_outputs.npz      outputs in float64, of EDM's networks without their preconditioners, and
                            of diffusers 0.14.0, those of NCSN++ times sigma
    edm_training.npz        losses of the two images, and the gradient of their mean with respect to
                            map_augment.weight, of EDMLoss, AugmentPipe and EDMPrecond in float64,
                            with the random numbers
    augmented_outputs.npz   outputs of EDM's networks alike, for the augmentation labels of the test

For these, the generator computed embeddings, softmax and filters in float64 too, where the
originals cast to float32.
"""

import functools
import gzip
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import abstract_params, compiled, evaluator, quick_jit
from published_files import DATA, LABEL, SIZE, TIMES, TOLERANCE, drawn, images

from denoising import Denoiser
from errors import FileError
from losses import Noise, ScoreMatching
from models.adm import ADM
from models.adm_classifier import ADMClassifier
from models.ddpm import DDPM
from models.ncsnpp import NCSNpp
from objectives.weights import EDM as EDMWeight
from published import diffusers, edm, openai
from published.formats import read
from sde_lib import EDMSDE, VESDE, VPSDE
from training.augmentation import Augmentation, Transform
from training.objective import FIRST

NAMES = json.loads(gzip.decompress((DATA / "families_names.json.gz").read_bytes()))

SMALL = {"blocks_per_resolution": 1, "attention_resolutions": (4,), "dropout": 0.0}
SONG = SMALL | {"features": 16, "channel_multipliers": (1, 2)}
NCSN = {"embedding": "fourier", "resample": "fir", "progressive_input": "residual"}
SKIP = {"progressive_input": "input_skip", "progressive_output": "output_skip"}
DHARIWAL = SMALL | {"features": 64, "channel_multipliers": (1, 2)}
OPENAI = SMALL | {"features": 128, "channel_multipliers": (1, 1)}
GUIDED = ADM(**OPENAI, num_classes=3, learned_variance=True)
IMPROVED = ADM(**OPENAI, heads=4, scale_shift=False, resample="conv")
CLASSIFIER = ADMClassifier(**OPENAI, num_classes=5)
GOOGLE = DDPM(**SMALL, features=128, channel_multipliers=(1, 1), decoder_attention="block")
LARGE = NCSNpp(
    **SMALL, **SKIP, features=32, channel_multipliers=(1, 4), embedding="fourier", resample="fir"
)


@functools.cache
def tree(name):
    """The content of a published file."""
    if "tensors" in (names := NAMES[name]):
        return {"config": names["config"], "tensors": drawn(names["tensors"])}
    return drawn(names)


def imported(family, content, network, **options):
    return family.import_state(
        content, network, SIZE, abstract_params(network), source="file", **options
    ).params


def broken(content, **changes):
    """The content with some tensors replaced, or removed where None."""
    return {name: value for name, value in (content | changes).items() if value is not None}


def assert_close(ours, name):
    with np.load(DATA / "families_outputs.npz") as references:
        theirs = references[name]
    assert ours.shape == theirs.shape
    assert np.max(np.abs(ours - theirs)) < TOLERANCE * np.max(np.abs(theirs))


# EDM: what a preconditioned network believes of the image, D(x; sigma).


class Process(NamedTuple):
    """A preconditioner of EDM in our words, and the range of the data in which it holds."""

    sde: Any
    parameterization: str
    conditioning: str
    centered: bool = True


VP = Process(VPSDE(), "eps", "timestep_999")
VE = Process(VESDE(sigma_min=0.01, sigma_max=50.0), "scaled_score", "log_sigma", centered=False)
EDM = Process(VESDE(sigma_min=0.002, sigma_max=80.0), "edm", "edm")
EDM_CASES = {
    "edm_song": (VP, NCSNpp(**SONG, **SKIP, num_classes=3, augment_labels=9), [1, 3]),
    "edm_adm": (EDM, ADM(**DHARIWAL, num_classes=3, augment_labels=9), [2, 3]),
}
EDM_FILE = NCSNpp(**SONG | {"features": 8, "channel_multipliers": (1, 1)}, **NCSN)


def denoised(process, network, params, labels):
    """D(x; sigma) for images in [-1, 1] with noise of the process's size added."""
    sde, t = process.sde, jnp.asarray(TIMES)
    half = 1 if process.centered else 2  # images in [0, 1] have half the noise of those in [-1, 1]
    noise = half * np.exp(sde.log_sigma(t) - sde.log_alpha(t))
    x = images() * (1 + noise[:, None, None, None])
    x = x if process.centered else (x + 1) / 2

    denoiser = Denoiser(
        sde=sde,
        network=functools.partial(compiled(network), params),
        labels=None if labels is None else jnp.array(labels),
        parameterization=process.parameterization,
        conditioning=process.conditioning,
    )
    x0 = denoiser.predict(sde.alpha(t)[:, None, None, None] * x, t).x0
    return x0 if process.centered else 2 * x0 - 1


@pytest.mark.slow
@pytest.mark.parametrize("name", EDM_CASES)
def test_networks_of_edm_denoise_as_the_originals(name):
    process, network, labels = EDM_CASES[name]
    params = imported(edm, tree(name), network)
    assert_close(denoised(process, network, params, labels), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", EDM_CASES)
def test_networks_of_edm_see_augmentation_as_the_originals(name):
    content = {key.removeprefix("model."): value for key, value in tree(name).items()}
    network = EDM_CASES[name][1]
    params = imported(edm, content, network)
    if "map_label.bias" in content:
        params = params | {"classes": {"table": classes_in_float64(content)}}
    labels = np.random.default_rng(9).normal(size=(2, 9))
    with jax.enable_x64(True), np.load(DATA / "augmented_outputs.npz") as outputs:
        given = (np.float64(images()), np.float64(LABEL), np.array([1, 2]))
        params = jax.tree.map(np.float64, params)
        y = compiled(network)(params, *given, augment_labels=labels)
        assert np.max(np.abs(y - outputs[name])) < 1e-10 * np.max(np.abs(outputs[name]))
        plain, zero = (
            compiled(network)(params, *given, augment_labels=given_labels)
            for given_labels in (None, np.zeros((2, 9)))
        )
        np.testing.assert_array_equal(plain, zero)


@pytest.mark.slow
def test_edm_trains_as_the_original():
    """Augmentation, preconditioning, weight and labels: the loss of each image, and a gradient."""
    network = EDM_CASES["edm_song"][1]
    content = {key.removeprefix("model."): value for key, value in tree("edm_song").items()}
    params = imported(edm, content, network) | {"classes": {"table": classes_in_float64(content)}}
    loss = ScoreMatching(weight=EDMWeight(), reduction="sum")
    with jax.enable_x64(True), np.load(DATA / "edm_training.npz") as theirs:
        sde = EDMSDE(sigma_max=80.0)
        transform = Transform(*(jnp.asarray(theirs[name]) for name in Transform._fields))
        x0 = jax.vmap(Augmentation().apply)(jnp.float64(images()), transform)
        drawn_noise = Noise(jnp.asarray(theirs["sigma"] / 80), jnp.asarray(theirs["eps"]))

        def objective(augmentation, params):
            denoiser = Denoiser(
                sde=sde,
                network=functools.partial(
                    evaluator(network), params | {"augmentation": augmentation}
                ),
                labels=jnp.array([1, 2]),
                augment_labels=transform.labels,
                parameterization="edm",
                conditioning="edm",
            )
            losses = loss.evaluate(jax.random.key(0), drawn_noise, denoiser, x0, FIRST)
            return jnp.mean(losses), losses

        params = jax.tree.map(np.float64, params)
        gradient, losses = quick_jit(jax.grad(objective, has_aux=True))(
            params["augmentation"], params
        )
        # Images of 8 pixels reach beyond the padding of theirs, by the filter's last taps.
        np.testing.assert_allclose(losses, theirs["loss"], rtol=1e-8)
        error = np.abs(gradient["kernel"] - theirs["gradient"])
        assert error.max() < 1e-7 * np.abs(theirs["gradient"]).max()


@pytest.mark.slow
def test_a_network_trained_without_augmentation_has_no_input_for_its_labels():
    with pytest.raises(ValueError, match=r"missing: map_augment.weight .*augment_labels=0'$"):
        imported(edm, read.read(DATA / "edm.pt"), EDM_FILE.clone(augment_labels=9))


@pytest.mark.slow
def test_a_file_of_edm_denoises_as_the_original():
    params = imported(edm, read.read(DATA / "edm.pt"), EDM_FILE)
    assert_close(denoised(VE, EDM_FILE, params, None), "file_edm")


def test_edm_without_its_preconditioner_is_the_same():
    _, network, _ = EDM_CASES["edm_adm"]
    bare = {name.removeprefix("model."): value for name, value in tree("edm_adm").items()}
    assert_equal(imported(edm, bare, network), imported(edm, tree("edm_adm"), network))


def test_labels_of_edm_that_do_not_fit_one_another_are_refused():
    wrong = tree("edm_song") | {"model.map_label.bias": np.zeros(2)}
    with pytest.raises(FileError, match=r"^file: map_label.bias \(2,\) .* \(16, 3\)"):
        imported(edm, wrong, EDM_CASES["edm_song"][1])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resample": "fir"}, r"filter \(1.0, 1.0\) \(enc.4x4_down.*resample='plain'"),
        ({"decoder_attention": "block"}, "config.model.decoder_attention='block'.*'resolution'"),
        ({"num_classes": 0}, r"surplus: map_label.weight \(4, 16\)"),
        ({"num_classes": 5}, r"map_label.weight \(4, 16\) for classes/table \(6, 16\)"),
        ({"progressive_input": "residual"}, "config.model.resample='plain'.*fir_kernel"),
        ({"augment_labels": 0}, r"surplus: map_augment.weight \(16, 9\). Set '--.*labels=9'$"),
    ],
)
def test_settings_that_edm_does_not_have_are_refused(fields, message):
    _, network, _ = EDM_CASES["edm_song"]
    with pytest.raises(ValueError, match=message):
        imported(edm, tree("edm_song"), network.clone(**fields))


def test_a_filter_of_edm_is_told():
    with pytest.raises(ValueError, match=r"fir_kernel=\(1.0, 3.0, 3.0, 1.0\)"):
        imported(edm, read.read(DATA / "edm.pt"), EDM_FILE.clone(fir_kernel=(1, 1)))


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


# diffusers.

SIGMA = 0.01 * 5000.0**TIMES


@pytest.mark.slow
def test_ddpm_of_diffusers_computes_as_the_original():
    params = imported(diffusers, tree("diffusers_ddpm"), GOOGLE)
    assert_close(compiled(GOOGLE)(params, images(), LABEL), "diffusers_ddpm")


@pytest.mark.slow
def test_ncsnpp_of_diffusers_computes_as_the_original():
    params = imported(diffusers, tree("diffusers_ncsnpp"), LARGE)
    x = 2 * images() - 1  # center_input_sample
    assert_close(compiled(LARGE)(params, x, np.log(SIGMA)), "diffusers_ncsnpp")


@pytest.mark.slow
def test_a_folder_of_diffusers_computes_as_the_original():
    network = LARGE.clone(features=8, channel_multipliers=(1, 1), attention_resolutions=())
    params = imported(diffusers, read.read(DATA / "diffusers"), network)
    x = 2 * images() - 1
    assert_close(compiled(network)(params, x, np.log(SIGMA)), "file_diffusers")


@pytest.mark.slow
def test_ddpm_may_be_given_as_settings_of_ncsnpp():
    content = tree("diffusers_ddpm")
    network = NCSNpp(dropout=0.0, **diffusers.settings(content["config"]))
    assert_equal(imported(diffusers, content, network), imported(diffusers, content, GOOGLE))


@pytest.mark.slow
def test_old_names_of_diffusers_are_known():
    content = tree("diffusers_ncsnpp")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in content["tensors"].items():
        for new_part, old_part in old.items():
            name = name.replace(f".{new_part}.", f".{old_part}.")
        renamed[name] = value
    frequencies = renamed["time_proj.weight"]
    expected = imported(diffusers, content, LARGE)
    both = content | {"tensors": renamed | {"time_proj.W": frequencies}}
    assert_equal(imported(diffusers, both, LARGE), expected)
    oldest = broken(renamed, **{"time_proj.weight": None, "time_proj.W": frequencies})
    assert_equal(imported(diffusers, content | {"tensors": oldest}, LARGE), expected)


def test_settings_that_a_folder_needs_are_told():
    content = tree("diffusers_ddpm")
    with pytest.raises(ValueError, match="file does not fit this network") as error:
        diffusers.import_state(content, DDPM(features=64), 16, {}, source="file")
    assert str(error.value).endswith(
        "Set --config.model.features=128 '--config.model.channel_multipliers=(1, 1)' "
        "--config.model.blocks_per_resolution=1 '--config.model.attention_resolutions=(4,)' "
        "--config.model.decoder_attention=block --config.data.image_size=8"
    )
    with pytest.raises(ValueError, match=r"config.model.name='adm'; .* 'ddpm' and 'ncsnpp'"):
        imported(diffusers, content, GUIDED)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ddpm", {"freq_shift": 0}, "freq_shift=0; valid is 1"),
        ("ddpm", {"norm_eps": 1e-5}, "norm_eps=1e-05; valid is 1e-06"),
        ("ddpm", {"attention_head_dim": 8}, "attention_head_dim=8; valid is None"),
        ("ddpm", {"downsample_padding": None}, "downsample_padding=None; valid is 0"),
        ("ddpm", {"norm_num_groups": None}, "norm_num_groups=None; valid is a positive integer"),
        ("ddpm", {"block_out_channels": [128, 192]}, "multiples of the first"),
        ("ddpm", {"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "their mirror image"),
        ("ddpm", {"down_block_types": ["ResnetDownsampleBlock2D"] * 2}, "valid is DownBlock2D"),
        ("ddpm", {"sample_size": None}, "no sample_size"),
        ("ddpm", {"layers_per_block": None}, "not that of a UNet2DModel"),
        ("ddpm", {"block_out_channels": [128]}, "not that of a UNet2DModel"),
        ("ncsnpp", {"norm_num_groups": 32}, "norm_num_groups=32; valid is None"),
        ("ncsnpp", {"block_out_channels": [32, 64]}, "attention at 64.*128 or more"),
        ("ncsnpp", {"center_input_sample": False}, "center_input_sample=False; valid is True"),
        ("ncsnpp", {"mid_block_scale_factor": 1}, "mid_block_scale_factor=1; valid is 1.414"),
    ],
)
def test_what_no_network_of_ours_computes_is_refused(name, changes, message):
    content = tree(f"diffusers_{name}")
    content = content | {"config": content["config"] | changes}
    with pytest.raises(FileError, match=rf"^file: config.json .*{message}"):
        imported(diffusers, content, GOOGLE)


# EDM and diffusers at widths 32, 64 and 128.

WIDTHS = json.loads(gzip.decompress((DATA / "widths_names.json.gz").read_bytes()))
WIDTHS_LABELS = np.array([2, 0])
WIDTHS_SIGMA = np.array([0.084, 0.707])


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


def classes_in_float64(content):
    """sqrt(n) W e_k + b for every class, and b for "no class", as SongUNet adds them."""
    weight, bias = (np.float64(content[f"map_label.{part}"]) for part in ("weight", "bias"))
    one_hot = np.eye(weight.shape[1] + 1, weight.shape[1])
    return np.sqrt(weight.shape[1]) * one_hot @ weight.T + bias


@pytest.mark.slow
@pytest.mark.parametrize("name", WIDTHS)
def test_a_network_of_any_width_computes_as_the_original(name):
    network, params, content = of_a_width(name)
    with np.load(DATA / "widths_outputs.npz") as outputs:
        expected = outputs[name]
    if "map_label.bias" in content:  # its sum is not a float32, as our parameters are
        params = params | {"classes": {"table": classes_in_float64(content)}}
    labels = [WIDTHS_LABELS] if network.num_classes else []
    for x64, tolerance in ((True, 1e-10), (False, 1e-5)):
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
    "edm_song": (edm, EDM_CASES["edm_song"][1], "model.enc.8x8_conv.weight"),
    "edm_adm": (edm, EDM_CASES["edm_adm"][1], "model.enc.8x8_conv.weight"),
    "guided": (openai, GUIDED, "input_blocks.0.0.weight"),
    "improved": (openai, IMPROVED, "input_blocks.0.0.weight"),
    "diffusers_ddpm": (diffusers, GOOGLE, "conv_in.weight"),
    "diffusers_ncsnpp": (diffusers, LARGE, "conv_in.weight"),
}


def assert_equal(params, others):
    assert jax.tree.all(jax.tree.map(np.array_equal, params, others))


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
