"""The loss that trains perceptors, against its formula, and what its random numbers are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from guidance.perceptor import (
    CaptionModel,
    ContrastiveLoss,
    Cutouts,
    Perceptor,
    contrastive_loss,
)
from training.objective import FIRST

RNG = np.random.default_rng(0)


def unit_vectors():
    vectors = RNG.normal(size=(6, 5))
    return jnp.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_loss_is_the_cross_entropy_of_both_choices(x64):
    images, texts, scale = unit_vectors(), unit_vectors(), jnp.asarray(3.0)
    logits = scale * images @ texts.T
    rows, columns = (z - np.log(np.exp(z).sum(axis=1, keepdims=True)) for z in (logits, logits.T))
    different = contrastive_loss(images, texts, scale, jnp.arange(6))
    np.testing.assert_allclose(different, -(np.diag(rows) + np.diag(columns)) / 2, rtol=1e-10)

    labels = jnp.array([0, 0, 1, 2, 1, 0])
    same = labels[:, None] == labels[None]
    wanted = same / same.sum(axis=1, keepdims=True)
    expected = -(wanted * (rows + columns)).sum(axis=1) / 2
    np.testing.assert_allclose(contrastive_loss(images, texts, scale, labels), expected, rtol=1e-10)


@pytest.mark.slow
def test_each_image_has_a_caption_of_its_class():
    captions = np.arange(3 * 4).reshape(3, 4, 1).astype(np.int32)
    labels, seen = jnp.array([2, 0, 1, 1, 2, 0, 0, 1]), []

    def network(images, tokens):
        seen.append((images, tokens))
        return (images.reshape(8, -1)[:, :2],) * 2 + (jnp.ones(()),)

    model = CaptionModel(network=network, labels=labels)
    x0 = jnp.asarray(RNG.uniform(-1, 1, (8, 4, 4, 1)).astype(np.float32))
    for noise in (0.0, 0.5):
        loss = ContrastiveLoss(captions=captions, cutouts=Cutouts(count=1, smallest=1), noise=noise)
        loss(jax.random.key(0), model, x0, FIRST)
    (clean, tokens), (noisy, _) = seen
    np.testing.assert_array_equal(tokens[:, 0] // 4, labels)
    np.testing.assert_allclose(clean, x0, atol=1e-6)  # cut out whole, standardized to [-1, 1]
    stds = 2 * 0.5 * np.ones(8)
    assert (np.std(noisy - clean, axis=(1, 2, 3)) < 2 * stds).all()
    assert np.std(noisy - clean) > 0.1


def test_perceptor_sees_standardized_channels():
    perceptor = Perceptor(
        network=lambda x: x[:, 0, 0], image_size=2, channels=3, mean=(0.1, 0.2, 0.3), std=(1, 2, 4)
    )
    gray = jnp.full((1, 2, 2, 1), 0.5)
    np.testing.assert_allclose(perceptor.embed(gray), [[0.4, 0.15, 0.05]], rtol=1e-6)
