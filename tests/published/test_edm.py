"""Networks of EDM: imported, they believe of an image what the originals believe, D(x; sigma).

    edm_training.npz        losses of the two images, and the gradient of their mean with respect to
                            map_augment.weight, of EDMLoss, AugmentPipe and EDMPrecond in float64,
                            with the random numbers
    augmented_outputs.npz   outputs of EDM's networks alike, for the augmentation labels of the test

How the outputs were made is in published_families.py.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import compiled, evaluator, quick_jit
from published_families import (
    EDM_ADM,
    EDM_SONG,
    NCSN,
    SONG,
    assert_close,
    assert_equal,
    classes_in_float64,
    imported,
    tree,
)
from published_files import DATA, LABEL, TIMES, images

from denoising import Denoiser
from errors import FileError
from losses import Noise, ScoreMatching
from models.ncsnpp import NCSNpp
from objectives.weights import EDM as EDMWeight
from published import edm
from published.formats import read
from sde_lib import EDMSDE, VESDE, VPSDE
from training.augmentation import Augmentation, Transform
from training.objective import FIRST


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
    "edm_song": (VP, EDM_SONG, [1, 3]),
    "edm_adm": (EDM, EDM_ADM, [2, 3]),
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
