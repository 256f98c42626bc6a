"""Guidance by texts: prompts, distances, cutouts, and gradients where they are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import gaussian

from guidance.base import guide
from guidance.perceptor import Cutouts, Perceptor, resized
from guidance.text import PromptGuidance, parse_prompts, spherical_distance, total_variation
from numerics.arrays import sample_keys
from sde_lib import VESDE, VPSDE

SHAPE = (4, 4, 1)
UNIT = gaussian(np.zeros(16), np.eye(16))


def see(images):
    """Map images to unit vectors of four numbers: those of the rows' means."""
    vectors = images.mean(axis=(2, 3)) + jnp.arange(4)[None] / 10
    return vectors / jnp.linalg.norm(vectors, axis=1, keepdims=True)


PERCEPTOR = Perceptor(
    network=jax.tree_util.Partial(see), image_size=4, channels=1, mean=(0.5,), std=(0.5,)
)
TARGETS = np.eye(4)[:2]


def guidance(indices=(0, 1, 2), **fields):
    fields = {"weights": jnp.array([1.0, -0.5]), **fields}
    keys = sample_keys(jax.random.key(0), jnp.asarray(indices))
    return PromptGuidance(perceptor=PERCEPTOR, targets=jnp.asarray(TARGETS), keys=keys, **fields)


def images(dtype=np.float64):
    return jnp.asarray(np.random.default_rng(0).normal(size=(3, *SHAPE)), dtype)


@pytest.mark.parametrize(
    ("text", "prompts"),
    [
        ("seven", (("seven", 1.0),)),
        ("a cat:1 | dog:-0.5", (("a cat", 1.0), ("dog", -0.5))),
        (r"5\:30 pm | a\|b : 2", (("5:30 pm", 1.0), ("a|b", 2.0))),
        ("three:1e-1", (("three", 0.1),)),
    ],
)
def test_prompts_have_weights(text, prompts):
    assert parse_prompts(text, "prompt") == prompts


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a cat:much", "prompt='a cat:much' has the weight 'much', which is no number; write"),
        ("a cat:", "the weight '', which is no number"),
        ("a cat:nan", "the weight 'nan'"),
        ("5:30 pm", r"the weight '30 pm', .* or \\: for a colon that belongs"),
        ("seven | ", "has an empty prompt; write prompts such as a cat:1"),
        (":2", "has an empty prompt"),
    ],
)
def test_wrong_prompts_are_one_line(text, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        parse_prompts(text, "prompt")
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_distance_is_half_of_the_squared_angle(x64):
    u, v = np.random.default_rng(0).normal(size=(2, 50, 8))
    u, v = (jnp.asarray(x) / np.linalg.norm(x, axis=1, keepdims=True) for x in (u, v))
    expected = np.arccos((u * v).sum(axis=1)) ** 2 / 2
    np.testing.assert_allclose(spherical_distance(u, v), expected, rtol=1e-9)
    for other in (u[0], -u[0]):  # where the angle itself has no gradient
        assert np.isfinite(jax.grad(spherical_distance)(u[0], other)).all()


def test_total_variation_is_that_of_a_ramp(x64):
    row, column = np.mgrid[:5, :5]
    ramp = jnp.asarray(2.0 * row + 3.0 * column)[None, :, :, None]
    np.testing.assert_allclose(total_variation(ramp), [2.0**2 + 3.0**2])


@pytest.mark.slow
def test_cutouts_are_parts_of_the_image(x64):
    """A ramp is linear in each of its parts, apart from their borders."""
    row, column = np.mgrid[:16, :16] + 0.5
    ramp = jnp.asarray(2 * row + column)[None, :, :, None]
    places = jnp.array([[[0.0, 0.0, 0.0], [0.5, 0.5, 0.25], [1.0, 0.0, 0.0]]])
    parts = Cutouts(count=3, smallest=0.5).cut(ramp, places, 8)
    assert parts.shape == (3, 1, 8, 8, 1)
    inner = np.mgrid[2:6, 2:6] + 0.5
    for part, side, corner in zip(parts, (8, 12, 16), ((0, 0), (2, 1), (0, 0)), strict=True):
        at = inner * side / 8 + np.array(corner)[:, None, None]
        np.testing.assert_allclose(part[0, 2:6, 2:6, 0], 2 * at[0] + at[1], atol=0.1)
    np.testing.assert_array_equal(Cutouts().cut(ramp, places, 16), ramp[None])
    wide = np.concatenate([np.zeros((1, 16, 4, 1)), ramp, np.zeros((1, 16, 4, 1))], axis=2)
    np.testing.assert_array_equal(resized(jnp.asarray(wide), 16), ramp)  # the central square


@pytest.mark.slow
def test_the_loss_is_the_weighted_sum(x64):
    x0 = images()
    angles = np.arccos(see(((x0 + 1) / 2 - 0.5) / 0.5) @ TARGETS.T)
    distances = (angles**2 / 2) @ np.array([1.0, -0.5]) / 1.5
    outside = np.mean(np.maximum(np.abs(x0) - 1, 0) ** 2, axis=(1, 2, 3))
    expected = 7 * distances + 5 * outside + 3 * total_variation(x0)
    found = guidance(scale=7.0, range_scale=5.0, variation_scale=3.0).loss(x0, jnp.asarray(0.5))
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=20.0)], ids=["vp", "ve"])
@pytest.mark.slow
def test_both_gradients_agree_for_data_of_unit_variance(x64, sde):
    """There x0 = alpha x / (alpha^2 + sigma^2), and the score that of a product of densities."""
    x, t = images(), jnp.asarray(0.4)
    flat = UNIT.denoiser(sde)
    network = jax.tree_util.Partial(
        lambda flat, x, cond: flat(x.reshape(len(x), -1), cond).reshape(x.shape), flat.network
    )
    denoiser = dataclasses.replace(flat, network=network)
    alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
    chosen = guidance(cutouts=Cutouts(count=2), scale=7.0)

    def log_density(x):
        x0 = alpha * x / (alpha**2 + sigma**2)
        return -jnp.sum(x**2) / (2 * (alpha**2 + sigma**2)) - jnp.sum(chosen.loss(x0, t))

    @jax.jit
    def all_three(x):
        both = (
            guide(denoiser, dataclasses.replace(chosen, through_network=through)).score(x, t)
            for through in (True, False)
        )
        return *both, jax.grad(log_density)(x)

    through, direct, expected = all_three(x)
    np.testing.assert_allclose(through, expected, rtol=1e-8)
    np.testing.assert_allclose(direct, expected, rtol=1e-8)


def test_cutouts_depend_on_the_image_and_the_time_alone():
    x = images(np.float32)

    @jax.jit
    def loss(indices, x, t):
        return guidance(indices, cutouts=Cutouts(count=2)).loss(x, t)

    def at(indices, t=0.5):
        rows = np.array(indices)
        return np.asarray(loss(jnp.asarray(rows), x[rows % 3], jnp.float32(t)))

    whole = at([0, 1, 2])
    np.testing.assert_array_equal(at([2, 0, 4])[:2], whole[[2, 0]])
    assert np.abs(at([0, 1, 2], t=0.25) - whole).min() > 0
    assert np.abs(at([3, 4, 5]) - whole).min() > 0  # the same images


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"scale": -1.0}, "scale=-1.0 must be at least 0"),
        ({"variation_scale": -1.0}, "variation_scale=-1.0 must"),
        ({"interval": (0.5, 0.1)}, "must be two increasing times"),
    ],
)
def test_wrong_numbers_are_refused(fields, problem):
    with pytest.raises(ValueError, match=problem):
        guidance(**fields)
    with pytest.raises(ValueError, match="cutout_min=0 must lie in"):
        Cutouts(smallest=0)
