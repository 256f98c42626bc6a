"""Operators against NumPy, SciPy and the algebra of their dense matrices."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
from jax.tree_util import Partial

from guidance.operators import (
    LinearOperator,
    blur,
    cartesian_mask,
    colorization,
    compressed_sensing,
    downsampling,
    fourier,
    from_function,
    from_matrix,
    inpainting,
)

SHAPE = (4, 6, 3)
RANDOM = np.random.default_rng(0)
MASK = RANDOM.integers(0, 2, SHAPE[:2])
COLUMNS = cartesian_mask(SHAPE, 2.0)
MATRIX = RANDOM.normal(size=(7, 5))
# Three of five rows tell something new, and of six columns too.
DEFICIENT = RANDOM.normal(size=(5, 3)) @ RANDOM.normal(size=(3, 6))
SCALES, SHIFTS = np.array([0.5, 1.0, 2.0]), np.array([1.0, 0.1, 0.03])


def product(matrix, x):
    return x @ jnp.asarray(matrix, x.dtype).T


OPERATORS = {
    "inpainting": lambda: inpainting(SHAPE, MASK),
    "colorization": lambda: colorization(SHAPE),
    "downsampling": lambda: downsampling(SHAPE, 2),
    "blur": lambda: blur(SHAPE, 0.8),
    "compressed_sensing": lambda: compressed_sensing(SHAPE, 0.3),
    "fourier": lambda: fourier(SHAPE, COLUMNS),
    "matrix": lambda: from_matrix(MATRIX),
    "deficient": lambda: from_matrix(DEFICIENT),
    "function": lambda: from_function(Partial(product, DEFICIENT), (6,)),
}
every_operator = pytest.mark.parametrize("name", OPERATORS)


def numbers(*shape, seed=1):
    return np.random.default_rng(seed).normal(size=shape)


_apply = jax.jit(lambda operator, columns: operator(columns))


def dense(operator):
    """The matrix (rows, columns) of an operator."""
    columns = np.eye(math.prod(operator.shape)).reshape(-1, *operator.shape)
    return flat(_apply(operator, columns)).T


def flat(x):
    return np.asarray(x).reshape(len(x), -1)


def by_hand(name, x):
    """A x by NumPy and SciPy; what is random in A is read off its matrix elsewhere."""
    if name == "inpainting":
        return np.where(MASK[..., None] == 1, x, 0)
    if name == "colorization":
        return math.sqrt(3) * x.mean(axis=-1, keepdims=True)
    if name == "downsampling":
        return sum(x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4
    if name == "blur":
        return np.stack([scipy.ndimage.gaussian_filter(one, (0.8, 0.8, 0)) for one in x])
    if name == "fourier":
        spectrum = np.fft.fft2(x, axes=(1, 2)) / math.sqrt(SHAPE[0] * SHAPE[1]) * COLUMNS
        return np.stack([spectrum.real, spectrum.imag], axis=-1)
    return x @ (MATRIX if name == "matrix" else DEFICIENT).T


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(OPERATORS.keys() - {"compressed_sensing"}))
def test_measures_what_it_says(x64, name):
    operator = OPERATORS[name]()
    x = numbers(3, *operator.shape)
    y = _apply(operator, x)
    assert y.shape == (3, *operator.measurement_shape)
    np.testing.assert_allclose(y, by_hand(name, x), atol=1e-12)


def test_compressed_sensing_takes_rows_of_a_signed_cosine_transform(x64):
    operator = OPERATORS["compressed_sensing"]()
    assert operator.measurement_shape == (22,)  # 0.3 of 72
    matrix = dense(operator)
    transform = scipy.fft.dct(np.eye(72), axis=0, norm="ortho")
    # Each row is one of the transform's but for signs of columns, which all rows share.
    found = np.argmin(np.abs(np.abs(matrix)[:, None] - np.abs(transform)).sum(-1), axis=1)
    assert len(set(found)) == 22
    signs = np.sign(matrix[0] / transform[found[0]])
    np.testing.assert_allclose(matrix, signs * transform[found], atol=1e-12)
    assert 20 < np.sum(signs > 0) < 52
    assert not np.allclose(matrix, dense(compressed_sensing(SHAPE, 0.3, seed=1)))


def test_blur_longer_than_the_image(x64):
    x = numbers(1, 3, 2, 1)
    expected = scipy.ndimage.gaussian_filter(x[0, ..., 0], 2.5)
    np.testing.assert_allclose(blur((3, 2, 1), 2.5)(jnp.asarray(x))[0, ..., 0], expected)


def test_cartesian_mask_keeps_the_center():
    mask = cartesian_mask((8, 64, 1), 4.0, center_fraction=0.125, seed=3)
    columns = mask[0, :, 0]
    assert mask.shape == (8, 64, 1)
    assert np.all(mask == columns[:, None])
    assert columns.sum() == 16
    frequencies = np.flatnonzero(np.fft.fftshift(columns)) - 32
    assert set(range(-3, 4)) <= set(frequencies)
    assert len(set(frequencies) - set(range(-4, 5))) >= 7
    assert np.any(mask != cartesian_mask((8, 64, 1), 4.0, center_fraction=0.125, seed=4))


@jax.jit
def answers(operator, x, y):
    """All that an operator answers, in one program."""
    columns = operator(jnp.eye(x[0].size, dtype=x.dtype).reshape(-1, *operator.shape))
    solved = operator.solve(y, jnp.asarray(SCALES, x.dtype), jnp.asarray(SHIFTS, x.dtype))
    parts = operator(x), operator.adjoint(y), operator.pseudo_inverse(y), operator.in_range(y)
    return columns.reshape(x[0].size, -1).T, *(a.reshape(len(a), -1) for a in (*parts, solved))


@pytest.mark.slow
@every_operator
def test_algebra_is_that_of_the_dense_matrix(x64, name):
    operator = OPERATORS[name]()
    x, y = numbers(3, *operator.shape), numbers(3, *operator.measurement_shape, seed=2)
    matrix, forward, back, inverted, within, solved = map(np.asarray, answers(operator, x, y))
    x, y = x.reshape(3, -1), y.reshape(3, -1)

    np.testing.assert_allclose(np.sum(forward * y, axis=1), np.sum(x * back, axis=1))
    np.testing.assert_allclose(back, y @ matrix, atol=1e-12)
    # The y are not in A's range where it has less than full rank.
    inverse = np.linalg.pinv(matrix, rcond=1e-10)
    np.testing.assert_allclose(inverted, y @ inverse.T, atol=1e-6)
    np.testing.assert_allclose(within, y @ (matrix @ inverse).T, atol=1e-6)
    for row, scale, shift in zip(range(3), SCALES, SHIFTS, strict=True):
        system = scale * matrix @ matrix.T + shift * np.eye(len(matrix))
        expected = np.linalg.solve(system, y[row])
        assert np.abs(solved[row] - expected).max() < 1e-5 * np.abs(expected).max()
    if operator.gram is not None:
        gram = np.broadcast_to(operator.gram, operator.measurement_shape).ravel()
        expected = np.linalg.eigvalsh(matrix @ matrix.T)
        np.testing.assert_allclose(np.sort(gram), expected, atol=1e-12)


def test_counts_what_masks_leave():
    count = jax.jit(lambda operator: operator.count)
    assert count(OPERATORS["inpainting"]()) == 3 * MASK.sum()
    # The imaginary part of a frequency that is its own negative is 0, but for rounding.
    assert 3 * (2 * COLUMNS.sum() - 4) <= count(OPERATORS["fourier"]()) <= 3 * 2 * COLUMNS.sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["deficient", "function"])
def test_float32_is_as_exact_as_its_numbers(name):
    operator = OPERATORS[name]()
    x, y = (
        jnp.asarray(numbers(3, *s), jnp.float32)
        for s in (operator.shape, operator.measurement_shape)
    )
    matrix, _, back, inverted, _, solved = answers(operator, x, y)
    assert inverted.dtype == solved.dtype == jnp.float32
    scale, shift = (jnp.asarray(c[:, None], jnp.float32) for c in (SCALES, SHIFTS))
    residual = scale * solved @ matrix @ matrix.T + shift * solved - flat(y)
    assert jnp.abs(residual).max() < 3e-4
    # A^T A A^+ y = A^T y: what is 0 but for rounding is not divided by.
    assert jnp.abs(inverted @ matrix.T @ matrix - back).max() < 3e-5 * jnp.abs(back).max()
    assert jnp.abs(inverted).max() < 100


_solve = jax.jit(LinearOperator.solve)


@pytest.mark.slow
def test_samples_converge_each_for_itself(x64):
    matrix = jnp.eye(5, 6) * jnp.arange(1.0, 6)[:, None]
    operator = from_function(Partial(product, matrix), (6,))
    easy, hard, nothing = jnp.eye(5)[0], jnp.ones(5), jnp.zeros(5)
    one, small = jnp.ones(2), jnp.full(2, 1e-3)
    alone = _solve(operator, jnp.stack([easy, nothing]), one, small)
    beside = _solve(operator, jnp.stack([easy, hard]), one, small)
    np.testing.assert_array_equal(beside[0], alone[0])
    np.testing.assert_allclose(beside[1], 1 / (np.arange(1, 6) ** 2 + 1e-3), rtol=1e-5)
    # What is 0 stays 0, without a NaN from its empty residual.
    np.testing.assert_array_equal(alone[1], nothing)


def test_consistent_measurements_of_a_deficient_matrix_need_no_shift(x64):
    operator, inverse = OPERATORS["function"](), np.linalg.pinv(DEFICIENT, rcond=1e-10)
    x = numbers(2, 6)
    answer = _solve(operator, jnp.asarray(x @ DEFICIENT.T), jnp.full(2, 2.0), jnp.zeros(2))
    np.testing.assert_allclose(answer @ DEFICIENT, 0.5 * x @ (inverse @ DEFICIENT).T, atol=1e-6)


@pytest.mark.parametrize("name", ["deficient", "function"])
def test_derivatives(x64, name):
    operator = OPERATORS[name]()
    matrix = dense(operator)
    y = jnp.asarray(numbers(2, *operator.measurement_shape))
    inverse = np.linalg.inv(2 * matrix @ matrix.T + 0.3 * np.eye(len(matrix)))

    @jax.jit
    def gradients(y, shift):
        return jax.grad(lambda *at: jnp.sum(operator.solve(at[0], 2.0, at[1]) ** 2), (0, 1))(
            y, shift
        )

    by_y, by_shift = gradients(y, 0.3)
    np.testing.assert_allclose(by_y, 2 * flat(y) @ inverse @ inverse, atol=1e-5)
    expected = -2 * np.sum((flat(y) @ inverse) * (flat(y) @ inverse @ inverse))
    np.testing.assert_allclose(by_shift, expected, rtol=1e-5)


def test_operators_are_arguments_of_compiled_programs():
    traces = []

    @jax.jit
    def norms(operator, y):
        traces.append(1)
        return jnp.sum(operator.pseudo_inverse(y) ** 2, axis=(1, 2, 3))

    y = jnp.ones((2, *SHAPE), jnp.float32)
    for mask in (MASK, 1 - MASK):
        np.testing.assert_allclose(norms(inpainting(SHAPE, mask), y), 3.0 * mask.sum())
    assert len(traces) == 1


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: inpainting(SHAPE, np.ones((6, 4))), r"mask has shape \(6, 4\); for images of"),
        (lambda: inpainting(SHAPE, np.full((4, 6), 0.5)), "other than 0 and 1; round it first"),
        (
            lambda: inpainting(SHAPE, np.zeros((4, 6))),
            "mask is 0 everywhere, so that nothing is known",
        ),
        (lambda: fourier((4, 6), MASK), r"shape=\(4, 6\) must be \(height, width, channels\)"),
        (lambda: colorization((4,)), r"shape=\(4,\) must be"),
        (lambda: downsampling(SHAPE, 4), "factor=4 must divide the height 4 and the width 6"),
        (lambda: downsampling(SHAPE, 0), "factor=0 must divide"),
        (lambda: blur(SHAPE, 0.0), "std=0.0 must be above 0"),
        (lambda: compressed_sensing(SHAPE, 1.5), r"fraction=1.5 must lie in \(0, 1\]"),
        (lambda: cartesian_mask(SHAPE, 0.5), "acceleration=0.5 must lie between 1 and the width 6"),
        (lambda: cartesian_mask(SHAPE, 2.0, 1.5), r"center_fraction=1.5 must lie in \[0, 1\]"),
        (lambda: cartesian_mask(SHAPE, 3.0, 0.5), "alone is 3 columns, but .* keeps 2 of 6"),
        (lambda: from_matrix(np.ones(3)), r"matrix has shape \(3,\); it must be \(rows, columns\)"),
        (lambda: from_function(jnp.sin, (3,)), "is not linear, so it has no adjoint"),
        (lambda: from_function(lambda x: x + 1, (3,)), "does not map 0 to 0"),
        (lambda: from_function(lambda x: x > 0, (3,)), r"returns bool\(1, 3\) for one item"),
        (lambda: from_function(jnp.sum, (3,)), r"returns float32\(\) for one item of shape \(3,\)"),
        (lambda: from_function(lambda x: x, ()), r"shape=\(\) must have at least one axis"),
        (
            lambda: from_function(lambda x: x, (3,), tolerance=0.0),
            r"tolerance=0.0 must lie in \(0, 1\)",
        ),
        (lambda: from_function(lambda x: x, (3,), iterations=0), "iterations=0 must be at least 1"),
        (
            lambda: colorization(SHAPE)(jnp.ones((2, 4, 6, 1))),
            r"x has shape \(2, 4, 6, 1\); it must be \(batch, 4, 6, 3\)",
        ),
        (lambda: colorization(SHAPE).adjoint(jnp.ones((2, 4, 6, 3))), "y has shape"),
        (lambda: colorization(SHAPE).solve(jnp.ones((2, 4, 6, 3)), 1.0, 1.0), "y has shape"),
    ],
)
def test_wrong_ones_are_refused_in_one_line(make, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        make()
    assert "\n" not in re.sub(r"<.*>", "", str(caught.value))


def test_plain_functions_are_wrapped():
    operator = LinearOperator(function=lambda x: 2 * x, shape=(3,), gram=4.0)
    np.testing.assert_allclose(operator.pseudo_inverse(jnp.ones((1, 3))), 0.5)
    assert jax.tree.leaves(operator) == [4.0]
