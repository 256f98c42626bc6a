"""CLIP's towers: what they see, and what they refuse. The numbers are in published/test_clip.py."""

import functools

import jax
import numpy as np
import pytest

from models import clip
from models.clip import CLIP, TowerSize

SIZE = TowerSize(features=8, depth=1, heads=2, hidden=8)
NETWORK = CLIP(
    image_size=4,
    patch_size=2,
    channels=1,
    vision=SIZE,
    text=SIZE,
    vocabulary=10,
    context_length=6,
    end_token=9,
    embedding=4,
)

apply_clip, embed_images, embed_texts = (
    jax.jit(f, static_argnums=0) for f in (clip.apply_clip, clip.embed_images, clip.embed_texts)
)


@pytest.fixture(scope="module")
def params():
    return jax.jit(functools.partial(clip.init_clip, NETWORK))(jax.random.key(0))


@pytest.mark.slow
def test_what_follows_the_end_of_a_text_has_no_effect(params):
    tokens = np.array([[8, 1, 2, 9, 9, 9], [8, 1, 2, 9, 3, 9], [8, 2, 1, 9, 9, 9]])
    first, second, other = embed_texts(NETWORK, params, tokens)
    np.testing.assert_array_equal(first, second)
    assert np.abs(first - other).max() > 1e-3  # but the order of the words has one


@pytest.mark.slow
def test_vectors_have_length_one(params):
    images = np.random.default_rng(0).normal(size=(3, 4, 4, 1)).astype(np.float32)
    tokens = np.full((2, 6), 9)
    of_images, of_texts, scale = apply_clip(NETWORK, params, images, tokens)
    for vectors in (of_images, of_texts):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(scale, 1 / 0.07, rtol=1e-4)
    np.testing.assert_array_equal(embed_images(NETWORK, params, images), of_images)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"patch_size": 3}, "patch_size=3 must divide the image size 4"),
        ({"channels": 0}, "channels=0; valid is an integer from 1 to"),
        ({"end_token": 10}, "end_token=10; valid is an integer below 10"),
        ({"activation": "relu"}, "activation='relu' is unknown; choose one of: gelu, quick_gelu"),
    ],
)
def test_wrong_fields_are_refused(fields, problem):
    with pytest.raises(ValueError, match=problem):
        NETWORK.clone(**fields).validate()


def test_heads_divide_the_features():
    with pytest.raises(ValueError, match="heads=3 must divide features=8"):
        TowerSize(features=8, depth=1, heads=3, hidden=8)
    with pytest.raises(ValueError, match="depth=1000000; valid is an integer from 1 to 1000"):
        TowerSize(features=8, depth=1000000, heads=2, hidden=8)
