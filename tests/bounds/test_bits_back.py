"""Bits-back coding: images come back bit for bit, in as many bits as the bound says."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import gaussian

from bounds.bits_back import ImageCodec
from bounds.discrete import DiscreteBoundOptions, discrete_bound
from errors import CodecError
from numerics.pixel_levels import PixelLevels
from sde_lib import VESDE, VPSDE
from time_grids import Schedule

DIMS, LEVELS = 12, PixelLevels(gray_levels=16, low=-1.0, high=1.0)
DATA = gaussian(np.zeros(DIMS), 0.2 * 0.9 ** abs(np.subtract.outer(*2 * [np.arange(DIMS)])))


def images(count):
    x = DATA.sample(0, count)
    return np.clip(np.rint((x + 1) / LEVELS.spacing), 0, 15).astype(np.int64)


VP, VE = VPSDE(beta_min=0.1, beta_max=20.0), VESDE(sigma_min=0.01, sigma_max=10.0)


def codec(sde=VP, variance="large", steps=30, lanes=10):
    return ImageCodec(
        denoiser=DATA.denoiser(sde),
        times=Schedule(grid="log_snr", steps=steps, t_min=1e-3).of(sde),
        pixel_levels=LEVELS,
        options=DiscreteBoundOptions(variance=variance, decoder="tweedie"),
        shape=(DIMS,),
        lanes=lanes,
    )


@pytest.mark.slow
@pytest.mark.parametrize(("sde", "variance"), [(VP, "small"), (VE, "large")])
def test_images_come_back_in_the_bits_of_the_bound(sde, variance):
    """Where p is too narrow, the bits that are written are far from random; see `Stack.mix`."""
    coder, stored = codec(sde, variance, steps=12, lanes=4), images(300)
    codes = coder.encode(stored)
    np.testing.assert_array_equal(coder.decode([code[:2] for code in codes], 300), stored)
    bits = sum(32 * len(code.words) - code.random_bits for code in codes)
    x0 = jnp.asarray(np.tile(LEVELS.low + LEVELS.spacing * stored, (3, 1)), jnp.float32)
    grid = {"times": coder.times, "pixel_levels": LEVELS, "options": coder.options}
    bound = discrete_bound(jax.random.key(0), coder.denoiser, x0, **grid).total.mean()
    expected = float(bound) / (DIMS * math.log(2))
    assert bits / stored.size == pytest.approx(expected, rel=0.03)
    # A lane begins with about the bits of one z.
    assert all(code.random_bits < 16 * DIMS + 128 for code in codes)


@pytest.mark.slow
def test_beginning_of_a_code_has_the_first_images_and_then_guesses():
    coder, stored = codec(lanes=1), images(20)
    (code,) = coder.encode(stored)
    previews = [np.concatenate(list(coder.preview([code.words[-n:]], 20))) for n in (6, 12, 20)]
    errors = [np.abs(p - stored[: len(p)]).mean(axis=1) for p in previews]
    assert [len(p) for p in previews] == sorted(len(p) for p in previews)
    for error in errors:
        assert not error[:-1].any(), "all but the last are whole"
    whole = np.concatenate(list(coder.preview([code.words], 20)))
    np.testing.assert_array_equal(whole[:-1], stored[:-1])
    assert np.abs(previews[0][-1] - stored[len(previews[0]) - 1]).mean() < 5


@pytest.mark.slow
def test_other_words_do_not_decode_quietly():
    coder, stored = codec(lanes=1), images(4)
    (code,) = coder.encode(stored)
    words = code.words.copy()
    words[len(words) // 2] ^= 1
    with pytest.raises(CodecError, match="does not end as it began"):
        coder.decode([(words, code.unread)], 4)
