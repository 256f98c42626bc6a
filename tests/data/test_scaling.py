"""Value ranges: round trips, and log-determinants against slopes."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from stored_images import one_line

from data.scaling import ImageScaler, Quantizer


@pytest.mark.parametrize("levels", [2, 3, 17, 100, 200, 255, 256])
def test_quantizer_inverts_both_of_its_maps_exactly(levels):
    quantizer = Quantizer(gray_levels=levels)
    stored = np.arange(levels, dtype=np.uint8)
    np.testing.assert_array_equal(quantizer.quantize(quantizer.normalize(stored)), stored)
    for noise in (0.0, 2**-16, 0.5, 1 - 2**-16):
        x = quantizer.dequantize(stored, np.full(levels, noise, np.float32))
        assert x.dtype == np.float32
        assert x.min() >= 0
        assert x.max() < 1
        np.testing.assert_array_equal(quantizer.quantize(x, dequantized=True), stored)


def test_quantize_takes_the_nearest_level_and_clips():
    x = jnp.array([-0.3, 0.4 / 16, 0.6 / 16, 1.0, 7.0])
    np.testing.assert_array_equal(Quantizer(gray_levels=17).quantize(x), [0, 0, 1, 16, 16])
    with pytest.raises(ValueError, match="1 of 2 are NaN"):
        Quantizer().quantize(np.array([0.0, np.nan]))


def test_pictures_span_black_to_white():
    stored = np.arange(17, dtype=np.uint8)
    picture = Quantizer(gray_levels=17).to_uint8(stored)
    np.testing.assert_allclose(picture / 255, stored / 16, atol=0.5 / 255)
    np.testing.assert_array_equal(Quantizer().to_uint8(np.arange(256, dtype=np.uint8)), range(256))


def test_quantizer_log_det_is_the_slope_of_dequantization():
    quantizer = Quantizer(gray_levels=17)
    noise = np.full(5, 0.25, np.float32)
    low, high = (quantizer.dequantize(np.full(5, k, np.uint8), noise) for k in (4, 5))
    assert quantizer.log_det(5) == pytest.approx(np.log(high - low).sum(), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(("low", "high"), [(-1.0, 1.0), (0.0, 1.0), (-0.5, 3.0)])
def test_scaler_log_det_is_its_jacobian_and_inverse_undoes_it(low, high):
    scaler = ImageScaler(low=low, high=high)
    x = np.linspace(0, 1, 6, dtype=np.float32)
    jacobian = jax.jacobian(scaler.forward)(jnp.asarray(x))
    assert scaler.log_det(6) == pytest.approx(float(jnp.linalg.slogdet(jacobian)[1]), abs=1e-5)
    y = scaler.forward(x)
    assert isinstance(y, np.ndarray)
    assert isinstance(scaler.inverse(jnp.asarray(y)), jax.Array)
    np.testing.assert_allclose([y.min(), y.max()], [low, high])
    np.testing.assert_allclose(scaler.inverse(y), x, atol=1e-6)
    np.testing.assert_array_equal(x, np.linspace(0, 1, 6, dtype=np.float32))  # not in place


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Quantizer(gray_levels=1), r"gray_levels=1 .*2\.\.256"),
        (lambda: Quantizer(gray_levels=257), r"gray_levels=257 .*2\.\.256"),
        (lambda: ImageScaler(low=1.0, high=1.0), "low < high"),
        (lambda: ImageScaler(high=math.inf), "finite"),
    ],
)
def test_invalid_range_is_refused(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert one_line(error)
