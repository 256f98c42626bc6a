"""Blocks of the networks against textbook filters, attention, embeddings and normalization."""

import functools
import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from networks import quick_jit

from models.blocks.attention import SelfAttention, attend
from models.blocks.embeddings import FourierEmbedding, positional_embedding
from models.blocks.layers import GroupNorm, ResidualBlock, default_init, dense
from models.blocks.resample import (
    average_downsample,
    bilinear_upsample,
    downsample,
    fir_blur,
    fir_downsample,
    fir_upsample,
    nearest_upsample,
    upsample,
)

KERNELS = [(1, 1), (1, 2, 1), (1, 3, 3, 1), (1, 4, 6, 4, 1), (1, 2, 4, 8), (3, 1, 2)]


def textbook_upfirdn(x, kernel, *, up, down, before, after):
    """Zero-stuffing, padding, convolution with the 2-D filter, and dropping, in float64."""
    b, h, w, c = x.shape
    stuffed = np.zeros((b, h * up, w * up, c))
    stuffed[:, ::up, ::up] = x
    padded = np.pad(stuffed, ((0, 0), (before, after), (before, after), (0, 0)))
    taps = np.outer(kernel, kernel) * up**2 / np.sum(kernel) ** 2
    n = len(kernel)
    rows, columns = padded.shape[1] - n + 1, padded.shape[2] - n + 1
    y = np.zeros((b, rows, columns, c))
    for i, j in itertools.product(range(n), repeat=2):
        y += taps[n - 1 - i, n - 1 - j] * padded[:, i : i + rows, j : j + columns]
    return y[:, ::down, ::down]


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
def test_fir_resampling_is_the_textbook_upfirdn(kernel):
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3))
    n = len(kernel)
    down = {"down": 2, "up": 1, "before": (n - 1) // 2, "after": (n - 2) // 2}
    up = {"down": 1, "up": 2, "before": (n + 1) // 2, "after": (n - 2) // 2}
    blur = {"down": 1, "up": 1, "before": (n - 1) // 2 + 1, "after": (n - 2) // 2 + 1}
    wide = up | {"before": up["before"] + 1, "after": up["after"] + 1}
    with jax.enable_x64(True):

        @quick_jit
        def resampled(x):
            wider = fir_upsample(x, kernel, margin=1)
            return fir_downsample(x, kernel), fir_upsample(x, kernel), wider, fir_blur(x, kernel)

        for ours, way in zip(resampled(x), (down, up, wide, blur), strict=True):
            textbook = textbook_upfirdn(x, kernel, **way)
            np.testing.assert_allclose(ours, textbook, rtol=0, atol=1e-14)


@pytest.mark.slow
def test_filter_of_two_equal_taps_is_plain_resampling():
    x = np.random.default_rng(0).normal(size=(2, 6, 8, 3)).astype(np.float32)
    np.testing.assert_allclose(upsample(x, (1, 1)), nearest_upsample(x), atol=1e-6)
    np.testing.assert_allclose(downsample(x, (1, 1)), average_downsample(x), atol=1e-6)
    np.testing.assert_allclose(nearest_upsample(x), x.repeat(2, axis=1).repeat(2, axis=2))
    np.testing.assert_allclose(average_downsample(nearest_upsample(x)), x, atol=1e-6)
    thrice = x.repeat(3, axis=1).repeat(3, axis=2)
    np.testing.assert_allclose(average_downsample(thrice, 3), x, atol=1e-6)


@pytest.mark.slow
def test_interpolation_is_linear_between_pixels():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 2))

    def interpolate(x, axis, factor, *, align_corners):
        n = x.shape[axis]
        squares = (np.arange(factor * n) + 0.5) / factor - 0.5
        at = np.linspace(0, n - 1, factor * n) if align_corners else squares
        return np.apply_along_axis(lambda line: np.interp(at, np.arange(n), line), axis, x)

    with jax.enable_x64(True):
        for factor, corners in itertools.product((2, 3, 4), (False, True)):
            rows = interpolate(x, 1, factor, align_corners=corners)
            expected = interpolate(rows, 2, factor, align_corners=corners)
            y = bilinear_upsample(x, factor, align_corners=corners)
            np.testing.assert_allclose(y, expected, atol=1e-14)


@pytest.mark.parametrize("kernel", [(1,), (), (1, -1), (1, -3, 1)])
def test_filter_that_cannot_be_normalized_is_refused(kernel):
    with pytest.raises(ValueError, match=r"config\.model\.fir_kernel=.*two or more"):
        fir_upsample(jnp.zeros((1, 4, 4, 1)), kernel)


def test_positional_embedding_is_accurate_up_to_the_last_label():
    cond = np.array([0.0, 0.37, 500.5, 999.0], np.float32)
    e = positional_embedding(jnp.asarray(cond), 8)
    frequencies = 10000.0 ** -np.array([0, 1 / 3, 2 / 3, 1])
    angles = cond.astype(np.float64)[:, None] * frequencies
    # Half an ulp of an angle near 999 is 3e-5; the frequency's rounding adds as much.
    np.testing.assert_allclose(e, np.hstack([np.sin(angles), np.cos(angles)]), atol=1e-4)


def test_fourier_embedding_has_frequencies_of_the_given_scale():
    module = FourierEmbedding(features=4000, scale=16.0)
    cond = jnp.array([-1.0, 0.25])
    e, variables = module.init_with_output(jax.random.key(0), cond)
    frequencies = variables["params"]["frequencies"]
    # The standard error of a standard deviation of 4000 draws is 1.1%.
    assert np.std(frequencies) == pytest.approx(16.0, rel=0.05)
    angles = 2 * np.pi * np.asarray(cond, np.float64)[:, None] * np.asarray(frequencies, np.float64)
    np.testing.assert_allclose(e, np.hstack([np.sin(angles), np.cos(angles)]), atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("num_groups", "groups"), [(0, 4), (2, 2), (16, 16)])
def test_normalization_is_that_of_flax_and_survives_a_large_mean(num_groups, groups):
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 16)).astype(np.float32)
    x = x * np.linspace(0.5, 2, 16, dtype=np.float32) + np.arange(16, dtype=np.float32)
    reference = nn.GroupNorm(groups, epsilon=1e-6, use_fast_variance=False)
    weights = {"scale": np.linspace(1, 2, 16), "bias": np.linspace(-1, 1, 16)}
    params = {"params": jax.tree.map(np.float32, weights)}
    expected = reference.apply(params, x)
    norm = GroupNorm(num_groups=num_groups)
    np.testing.assert_allclose(norm.apply(params, x), expected, atol=1e-5)
    np.testing.assert_allclose(norm.apply(params, x + 1000.0), expected, atol=2e-3)


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0])
def test_default_init_has_the_variance_it_promises(scale):
    kernel = default_init(scale)(jax.random.key(0), (3, 3, 32, 64), jnp.float32)
    variance = (scale or 1e-10) / (9 * (32 + 64) / 2)
    assert np.var(kernel) == pytest.approx(variance, rel=0.05)
    assert np.max(np.abs(kernel)) <= math.sqrt(3 * variance)


def test_gradient_of_a_dense_layer_copies_no_image():
    """On the CPU the product takes both matrices as they lie, and the layer is that of Flax."""
    rng = np.random.default_rng(0)
    x, w = (rng.normal(size=size).astype(np.float32) for size in ((2, 4, 4, 8), (8, 6)))
    ours = dense(6, bias=False, name="ours")

    def gradient(layer):
        def value(w, x):
            return jnp.sum(jnp.sin(layer.apply({"params": {"kernel": w}}, x)))

        compiled = jax.jit(jax.grad(value)).lower(w, x).compile()
        return compiled(w, x), re.findall(r"contracting_dims={(\d)}", compiled.as_text())[-2:]

    (made, dimensions), (expected, others) = (
        gradient(layer) for layer in (ours, ours.copy(dot_general=None))
    )
    np.testing.assert_allclose(made, expected, rtol=1e-5, atol=1e-6)
    assert dimensions == ["0", "0"]
    # Flax's own transposes y, which is why ours exists; when this fails, it can go.
    assert others == ["0", "1"]


def test_block_starts_as_its_shortcut():
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 16)).astype(np.float32)
    e = np.ones((2, 8), np.float32)
    block = ResidualBlock(16, init_scale=0.0)
    y, _ = quick_jit(lambda key: block.init_with_output(key, x, e, False))(jax.random.key(0))
    np.testing.assert_allclose(y, x / math.sqrt(2), atol=1e-4)


def test_attention_is_equivariant_to_permutations_of_the_pixels():
    x = np.random.default_rng(0).normal(size=(2, 4, 4, 8)).astype(np.float32)
    attention = SelfAttention(init_scale=1.0)
    f = quick_jit(functools.partial(attention.apply, train=False))
    params = quick_jit(functools.partial(attention.init, train=False))(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: leaf + 0.5, params)
    order = np.random.default_rng(1).permutation(16)

    def permute(images):
        return np.asarray(images).reshape(2, 16, 8)[:, order].reshape(2, 4, 4, 8)

    y = f(params, x)
    assert not np.allclose(permute(y), y, atol=1e-2)
    np.testing.assert_allclose(f(params, permute(x)), permute(y), rtol=1e-5)


def test_attention_is_the_textbook_one():
    q, k, v = np.random.default_rng(0).normal(size=(3, 2, 5, 3, 4))
    with jax.enable_x64(True):
        ours = attend(*map(jnp.asarray, (q, k, v)), train=False)
    for b, h in itertools.product(range(2), range(3)):
        logits = q[b, :, h] @ k[b, :, h].T / 2
        weights = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        np.testing.assert_allclose(ours[b, :, h], weights @ v[b, :, h], rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backend", "dtype", "width", "train", "flash"),
    [
        ("gpu", jnp.bfloat16, 64, True, True),
        ("gpu", jnp.bfloat16, 64, False, False),  # likelihoods need forward-mode derivatives
        ("gpu", jnp.float32, 64, True, False),
        ("gpu", jnp.bfloat16, 256, True, False),
        ("gpu", jnp.bfloat16, 12, True, False),
        ("cpu", jnp.bfloat16, 64, True, False),
    ],
)
def test_flash_kernel_serves_what_it_can(monkeypatch, backend, dtype, width, train, flash):
    """Only when the kernel is requested; its results need a GPU."""
    requested = []

    def kernel(query, key, value, *, is_causal, implementation):
        requested.append(implementation)
        return value

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(jax.nn, "dot_product_attention", kernel)
    x = jnp.ones((1, 4, 1, width), dtype)
    assert attend(x, x, x, train=train).dtype == dtype
    assert requested == (["cudnn"] if flash else [])
