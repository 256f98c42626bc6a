"""The options of guidance by texts: what they accept, and one line for what they do not."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, configuration

from denoising import Denoiser
from errors import ConfigError
from experiment.build import build
from experiment.prompts import Prompted
from experiment.sampler import Checkpoint
from guidance.perceptor import Perceptor
from solvers import ADAPTIVE, SOLVERS
from solvers.moments import EpsMoments

# These need networks of their own kind: of energies, of ends, of few steps.
OTHERS = {"mala", "bridge", "consistency"}

FIELDS = TINY | {"sampling.name": "ddim", "guidance.name": "text"}


def built(fields):
    return build(configuration(FIELDS | fields), overrides=frozenset(fields))


@pytest.mark.slow
def test_prompts_reach_the_sampler():
    prompts = {"guidance.prompt": "a cat:2 | dog", "guidance.image_prompt": "a.png:-0.5"}
    experiment = built(prompts | {"guidance.cutouts": 3, "guidance.interval": (0.1, 0.9)})
    details, sampler = experiment.sampler.guidance_details, experiment.sampler
    assert details.texts == (("a cat", 2.0), ("dog", 1.0))
    assert details.images == (("a.png", -0.5),)
    assert details.parts.count == 3
    assert sampler.needs == {"perceptor"}
    # Gradients of networks are far too large where there is hardly any signal.
    assert experiment.config["sampling"]["clip"] == "range"
    loose = built(prompts | {"guidance.range_scale": 10.0})
    assert loose.config["sampling"]["clip"] == "none"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, r"config\.guidance\.prompt='' is empty, and name='text' needs a text; give one such"),
        ({"guidance.prompt": "  "}, "needs a text"),
        ({"guidance.prompt": "seven:x"}, r"config\.guidance\.prompt='seven:x' has the weight 'x'"),
        ({"guidance.prompt": "seven:0"}, r"weights of 0 alone; give one prompt another weight"),
        ({"guidance.image_prompt": "|"}, r"config\.guidance\.image_prompt='\|' has an empty"),
        ({"guidance.cutouts": -1}, r"cutouts=-1 must lie in \[0, 1024\]"),
        ({"guidance.cutout_min": 2.0}, r"cutout_min=2.0 must lie in \(0, 1\]"),
        ({"guidance.variation_scale": -2.0}, "variation_scale=-2.0 must be at least 0"),
        (
            {"guidance.range_scale": 1.0, "sampling.clip": "range"},
            r"config\.guidance\.range_scale=1\.0 has no effect with config\.sampling\.clip='range'",
        ),
        (
            {"guidance.name": "none"},
            r"config\.guidance\.prompt='seven' is not used with name='none'",
        ),
        (
            {"data.name": "points:moons", "model.name": "mlp", "data.kind": "points"},
            r"config\.guidance\.name='text' is for images, and the data are points; choose another",
        ),
    ],
)
def test_wrong_options_are_one_line(fields, problem):
    prompt = {} if "needs a text" in problem or "image" in problem else {"guidance.prompt": "seven"}
    with pytest.raises(ConfigError, match=problem) as caught:
        built(prompt | fields)
    assert "\n" not in str(caught.value)


def mean_of_halves(images):
    """Map images to unit vectors: the means of their left and right halves."""
    left, right = jnp.split(images, 2, axis=2)
    means = jnp.stack([left.mean(axis=(1, 2, 3)), right.mean(axis=(1, 2, 3))], axis=1) + 0.1
    return means / jnp.linalg.norm(means, axis=1, keepdims=True)


def predicted(sde, x, t):
    """E[x0 | x_t] of pixels that are independent, with mean 0 and variance 1/4."""
    alpha, sigma = (f(t).reshape(-1, 1, 1, 1) for f in (sde.alpha, sde.sigma))
    return alpha * x / (alpha**2 + 4 * sigma**2)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*SOLVERS, *ADAPTIVE} - OTHERS))
def test_every_solver_follows_a_prompt(name):
    """A bright left half, or a bright right half, where the perceptor sees no more."""
    fields = {} if name in ADAPTIVE else {"sampling.steps": 4}
    if name == "langevin":  # it stays at its last time
        fields = {"sampling.steps": 20, "sampling.t_min": 0.5}
    experiment = built({"sampling.name": name, "guidance.prompt": "left"} | fields)
    sde = experiment.model.sde
    denoiser = Denoiser(
        sde=sde,
        network=jax.tree_util.Partial(predicted, sde),
        parameterization="x0",
        conditioning="t",
    )
    times = np.array([1.0, 0.5, 1e-3])
    ratio = np.asarray(sde.log_snr(jnp.asarray(times)), np.float64) / 2
    checkpoint = Checkpoint(
        step=1,
        denoiser=denoiser,
        moments=EpsMoments(
            times=times, half_log_snr=ratio, values=np.full(3, 0.5), errors=np.zeros(3)
        ),
    )
    perceptor = Perceptor(
        network=jax.tree_util.Partial(mean_of_halves),
        image_size=8,
        channels=1,
        mean=(0.0,),
        std=(1.0,),
    )
    lighter = []
    for target in ([1.0, 0.0], [0.0, 1.0]):
        prompted = Prompted(perceptor, jnp.array([target]), jnp.ones(1))
        guided = dataclasses.replace(checkpoint, perceptor=prompted)
        samples = experiment.sampler.draw(guided, np.arange(4)).samples.astype(float)
        lighter.append(samples[:, :, :4].mean() - samples[:, :, 4:].mean())
    assert lighter[0] > lighter[1] + 5, "of 255"
