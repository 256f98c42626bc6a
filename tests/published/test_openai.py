"""Networks and classifiers of guided-diffusion narrower than 128 channels, and EDM's baseline.

The references are outputs of the originals in double precision, by PyTorch, with the weights that
`published_files.drawn` makes of their names and shapes. The gradients are those of log p(y | x_t).
"""

import functools
import gzip
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import run, samples_of
from networks import abstract_params, compiled, evaluator, quick_jit
from PIL import Image
from published_files import DATA, LABEL, SIZE, TOLERANCE, drawn, images

from denoising import Denoiser
from errors import ConfigError
from experiment import build
from experiment.build import build_network
from experiment.configurations import load_configuration
from models.adm import ADM
from models.adm_classifier import ADMClassifier
from models.blocks.resample import bilinear_upsample
from published import edm, exchange, openai, openai_settings
from published.formats.torch_writer import write_torch
from sde_lib import EDMSDE

NAMES = json.loads(gzip.decompress((DATA / "guided_names.json.gz").read_bytes()))

SMALL = {"blocks_per_resolution": 1, "attention_resolutions": (4,), "dropout": 0.0}
OURS = SMALL | {"num_groups": 32}
PLAIN = {"scale_shift": False, "resample": "conv"}
HEADS = {"head_width": 16}
W32 = OURS | {"features": 32, "channel_multipliers": (1, 2)}
W64 = OURS | {"features": 64, "channel_multipliers": (1, 1)}
HALF = OURS | {"features": 64, "channel_multipliers": (0.5, 1)}
SPATIAL_2 = W32 | {"channel_multipliers": (1, 1), "heads": 2}
# name -> (network, order of its attention, labels)
UNETS = {
    "unet_32": (ADM(**W32, **PLAIN, heads=4), "legacy"),
    "unet_32_conditional": (ADM(**W32, **HEADS, num_classes=3, learned_variance=True), "legacy"),
    "unet_64_new": (ADM(**W64, **HEADS, num_classes=3, scale_shift=False), "new"),
    "unet_64_half": (ADM(**HALF, heads=4, learned_variance=True, resample="conv"), "legacy"),
}
UPSAMPLERS = {
    "upsampler": UNETS["unet_32_conditional"][0].clone(upsampling=4),
    "upsampler_unconditional": UNETS["unet_32"][0].clone(upsampling=2),
}
FIVE = {"num_classes": 5}
CLASSIFIERS = {
    "classifier_attention": (ADMClassifier(**HALF, **HEADS, **FIVE), "legacy"),
    "classifier_attention_new": (ADMClassifier(**W32, **HEADS, **FIVE, resample="conv"), "new"),
    "classifier_adaptive": (
        ADMClassifier(**W32, **HEADS, **FIVE, pool="adaptive", scale_shift=False),
        "legacy",
    ),
    "classifier_spatial": (
        ADMClassifier(**W64, **PLAIN, **HEADS, **FIVE, pool="spatial"),
        "legacy",
    ),
    "classifier_spatial_v2": (ADMClassifier(**SPATIAL_2, **FIVE, pool="spatial_v2"), "legacy"),
}
BASELINE = ADM(
    **SMALL, features=64, channel_multipliers=(1, 2), num_classes=3, learned_variance=True
)


@functools.cache
def tree(name):
    return drawn(NAMES[name])


def imported(name, network, order="legacy"):
    """Our parameters, by the function for networks or that for classifiers."""
    template = abstract_params(network)
    content, options = tree(name), {"source": "file", "attention_order": order}
    if isinstance(network, ADM):
        return openai.import_state(content, network, SIZE, template, **options).params
    return openai.import_classifier(content, network, SIZE, template, **options)


def small(size):
    """Small images, as the fixture's generator drew them."""
    return np.random.default_rng(size).uniform(-1.0, 1.0, (2, size, size, 3)).astype(np.float32)


def template(network):
    """The abstract parameters of any network, upsamplers too."""
    return build.abstract_params(network, (SIZE, SIZE, 3))


def assert_close(ours, name):
    with np.load(DATA / "guided_outputs.npz") as references:
        theirs = references[name]
    assert ours.shape == theirs.shape
    assert np.max(np.abs(ours - theirs)) < TOLERANCE * np.max(np.abs(theirs))


@pytest.mark.slow
@pytest.mark.parametrize("name", UNETS)
def test_a_narrow_network_computes_as_the_original(name):
    network, order = UNETS[name]
    labels = [np.array([0, 2])] if network.num_classes else []
    params = imported(name, network, order)
    assert_close(compiled(network)(params, images(), LABEL, *labels), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_classifier_and_its_gradient_are_the_originals(tmp_path, name):
    """As `--mode=import_classifier` reads it from a file."""
    network, order = CLASSIFIERS[name]
    source = tmp_path / "classifier.pt"
    write_torch(source, tree(name))
    candidate = exchange.Candidate(name, network, SIZE, abstract_params)
    project, params = exchange.import_classifier(source, candidate, [], order)
    assert project == "guided-diffusion"

    @quick_jit
    @functools.partial(jax.grad, has_aux=True)
    def gradient(x):
        logits = evaluator(network)(params, x, LABEL)
        return jax.nn.log_softmax(logits)[jnp.arange(2), jnp.array([1, 4])].sum(), logits

    slope, logits = gradient(images())
    assert_close(logits, name)
    assert_close(slope, f"{name}_gradient")


@pytest.mark.slow
def test_the_baseline_of_edm_denoises_as_the_original():
    """Between the noise levels of its chain, where it is given the nearest timestep."""
    content, template = tree("baseline"), abstract_params(BASELINE)
    params = edm.import_state(content, BASELINE, SIZE, template, source="file").params
    sigma = np.array([0.01, 0.5, 3.0, 79.0])
    x = np.concatenate([images(), images()]) * (1 + sigma[:, None, None, None])
    sde = EDMSDE(sigma_max=80.0)
    denoiser = Denoiser(
        sde=sde,
        network=functools.partial(compiled(BASELINE), params),
        labels=jnp.array([1, 0, 2, 1]),
        parameterization="iddpm",
        conditioning="iddpm",
    )
    x0 = denoiser.predict(jnp.asarray(x, jnp.float32), jnp.asarray(sigma / 80, jnp.float32)).x0
    assert_close(x0, "baseline")


@pytest.mark.slow
def test_the_published_classifier_for_512_pixels_fits_its_configuration():
    config = load_configuration("configs/adm_imagenet.py:512")
    network, size, template = build_network(config, "classifier")
    names = NAMES["classifier_512x512"]
    zeros = {name: np.broadcast_to(np.float32(0), shape) for name, shape in names.items()}
    params = openai.import_classifier(zeros, network, size, template(network), source="file")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == sum(np.prod(shape, dtype=int) for shape in names.values()) == 54_448_360


@pytest.mark.parametrize("name", UNETS | CLASSIFIERS)
def test_fields_are_read_from_names_and_shapes(name):
    network, _ = (UNETS | CLASSIFIERS)[name]
    unet = isinstance(network, ADM)
    read = openai_settings.of_unet if unet else openai_settings.of_classifier
    found = read(tree(name), SIZE)
    assert len(found) == 8 + unet
    assert {field: getattr(network, field) for field in found} == found


def test_fields_that_names_leave_open_are_left_out():
    """Without attention, three blocks and a change of size may be two and two of either."""
    names = {"time_embed.0.weight": np.zeros((4, 32))}
    for i in range(1, 6):
        names[f"input_blocks.{i}.0.in_layers.2.weight"] = np.zeros((32, 32, 3, 3))
    assert openai_settings.of_unet(names, 8) == {
        "features": 32,
        "resample": "block",
        "num_classes": 0,
    }


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"pool": "adaptive"}, "Set '--config.classifier.pool=attention'$"),
        ({"num_classes": 7}, "Set '--config.classifier.num_classes=5'$"),
        ({"features": 128}, "Set '--config.classifier.features=64'$"),
        ({"channel_multipliers": (1, 1)}, r"classifier.channel_multipliers=\(0.5, 1\)'$"),
        ({"scale_shift": False}, "Set '--config.classifier.scale_shift=True'$"),
        ({"resample": "conv"}, "Set '--config.classifier.resample=block'$"),
        ({"num_groups": 0}, "makes 8 groups of 32 channels.*Set --config.classifier.num_groups=32"),
    ],
)
def test_a_classifier_of_other_fields_names_them(fields, message):
    network, _ = CLASSIFIERS["classifier_attention"]
    with pytest.raises(ValueError, match=message):
        imported("classifier_attention", network.clone(**fields))


def test_a_network_of_other_fields_names_them():
    network = UNETS["unet_32_conditional"][0].clone(num_classes=0, learned_variance=False)
    wanted = r"Set '--config.model.num_classes=3' '--config.model.learned_variance=True'$"
    with pytest.raises(ValueError, match=wanted):
        imported("unet_32_conditional", network)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_an_image_is_enlarged_as_by_the_original(factor):
    with np.load(DATA / "guided_outputs.npz") as references, jax.enable_x64(True):
        enlarged = bilinear_upsample(jnp.asarray(small(3)[:1], float), factor)
        np.testing.assert_allclose(enlarged, references[f"bilinear_{factor}"], atol=1e-15)


@pytest.mark.slow
@pytest.mark.parametrize("name", UPSAMPLERS)
def test_an_upsampler_computes_as_the_original(name):
    """In double precision, then one in single."""
    network = UPSAMPLERS[name]
    labels = np.array([0, 2]) if network.num_classes else None
    params = openai.import_state(tree(name), network, SIZE, template(network), source="file").params
    with np.load(DATA / "guided_outputs.npz") as references:
        theirs = references[name]
    single = [(False, 1e-5)] if network.num_classes else []
    for x64, tolerance in ((True, 1e-10), *single):
        with jax.enable_x64(x64):
            dtype = np.float64 if x64 else np.float32
            inputs = dtype(images()), dtype(LABEL), labels, dtype(small(SIZE // network.upsampling))
            ours = compiled(network)(jax.tree.map(dtype, params), *inputs)
            assert ours.dtype == dtype
            assert np.max(np.abs(ours - theirs)) < tolerance * np.max(np.abs(theirs))


@pytest.mark.slow
def test_upsamplers_and_other_networks_are_not_taken_for_each_other():
    upsampler, plain = UPSAMPLERS["upsampler"], UNETS["unet_32_conditional"][0]
    for name, network, factor in (
        ("upsampler", plain, 4),
        ("unet_32_conditional", upsampler, 1),
    ):
        with pytest.raises(ValueError, match=rf"Set '--config.model.upsampling={factor}'$"):
            openai.import_state(tree(name), network, SIZE, template(network), source="file")
    other = upsampler.clone(upsampling=2, learned_variance=False)
    with pytest.raises(ValueError, match=r"Set '--config.model.learned_variance=True'$"):
        openai.import_state(tree("upsampler"), other, SIZE, template(other), source="file")


UPSAMPLER = {
    "data.image_size": 8,
    "model.features": 32,
    "model.channel_multipliers": (1, 2),
    "model.blocks_per_resolution": 1,
    "model.attention_resolutions": (4,),
    "model.num_classes": 3,
    "model.heads": 0,
    "model.head_width": 16,
    "model.num_groups": 32,
    "sampling.steps": 2,
    "sampling.grid": "uniform",
}


@pytest.mark.slow
def test_an_imported_upsampler_enlarges_small_images(tmp_path):
    """From the command line: a file becomes a run, and two PNGs of 2x2 pixels become of 8x8."""
    write_torch(tmp_path / "upsampler.pt", tree("upsampler"))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 2, 2, 3), np.uint8)
    for name, image in zip("ab", pixels, strict=True):
        Image.fromarray(image).save(tmp_path / f"{name}.png")

    def call(mode, *flags):
        config = "--config=configs/adm_upsampler.py:64_256"
        given = [f"--config.{name}={value}" for name, value in UPSAMPLER.items()]
        return run(config, f"--mode={mode}", f"--workdir={tmp_path / 'run'}", *given, *flags)

    done = call("import", f"--source={tmp_path / 'upsampler.pt'}")
    assert done.status == 0, done.stderr
    task = (
        "--config.task.name=upsample",
        f"--config.task.input={tmp_path / 'a.png'},{tmp_path / 'b.png'}",
        "--config.sampling.labels=(2,0)",
    )
    folder = samples_of(call("sample", "--num_samples=4", *task))
    with np.load(folder / "samples.npz") as file:
        assert file["samples"].shape == (4, 8, 8, 3)
    with Image.open(folder / "samples.png") as figure:  # two rows: an input, two samples
        shown = np.asarray(figure).reshape(2 * 9 - 1, 5, 3 * 9 - 1, 5, 3)[:, 0, :, 0]
    np.testing.assert_array_equal(shown[9:, :8], pixels[1].repeat(4, axis=0).repeat(4, axis=1))
    refused = call("sample")
    assert refused.status == 1
    assert "has no small image in plain samples; give it one by --mode=sample" in refused.stderr


def test_a_file_in_the_wrong_mode_names_the_right_one(tmp_path):
    source = tmp_path / "file.pt"
    for name, read, mode in (
        ("unet_32", exchange.import_classifier, "--mode=import$"),
        ("classifier_attention", exchange.import_state, "--mode=import_classifier"),
    ):
        write_torch(source, tree(name))
        network, _ = UNETS["unet_32"]
        candidate = exchange.Candidate("adm", network, SIZE, abstract_params)
        with pytest.raises(ConfigError, match=mode):
            read(source, candidate, [])
        source.unlink()


GUIDED = {
    "data.image_size": 8,
    "model.name": "adm",
    "model.features": 32,
    "model.channel_multipliers": (1, 2),
    "model.blocks_per_resolution": 1,
    "model.attention_resolutions": (4,),
    "model.heads": 4,
    "model.scale_shift": False,
    "model.resample": "conv",
    "model.num_groups": 32,
    "classifier.features": 64,
    "classifier.channel_multipliers": (0.5, 1),
    "classifier.attention_resolutions": (4,),
    "classifier.num_groups": 32,
    "classifier.num_classes": 5,
    "sampling.steps": 2,
}


@pytest.mark.slow
def test_an_imported_classifier_guides_an_imported_network(tmp_path):
    """From the command line. Without guidance samples differ, and a second import is refused."""
    given = [f"--config.{name}={value}" for name, value in GUIDED.items()]

    def call(mode, *flags):
        config = "--config=configs/vp_cifar10.py:ddpm"
        return run(config, f"--mode={mode}", f"--workdir={tmp_path / 'run'}", *given, *flags)

    for mode, name in (("import", "unet_32"), ("import_classifier", "classifier_attention")):
        source = tmp_path / f"{name}.pt"
        write_torch(source, tree(name))
        done = call(mode, f"--source={source}")
        assert done.status == 0, done.stderr
    again = call("import_classifier", f"--source={source}")
    assert again.status == 1
    assert "holds a classifier already" in again.stderr
    guided = (
        "--config.guidance.name=classifier",
        "--config.guidance.scale=3.0",
        "--config.sampling.guidance_form=mean",
    )
    samples = []
    for flags in ((), guided):
        done = call("sample", "--num_samples=2", *flags)
        with np.load(samples_of(done) / "samples.npz") as file:
            samples.append(file["samples"].astype(int))
    assert np.max(np.abs(samples[0] - samples[1])) > 0


def test_a_classifier_names_the_configurations_that_it_fits(tmp_path):
    source = tmp_path / "classifier.pt"
    write_torch(source, tree("classifier_attention"))
    networks = [network for network, _ in CLASSIFIERS.values()]
    first, *others = (
        exchange.Candidate(f"of_{i}", network, SIZE, abstract_params)
        for i, network in enumerate(reversed(networks))
    )
    with pytest.raises(ConfigError, match=r"It fits --config=of_4$"):
        exchange.import_classifier(source, first, others)
