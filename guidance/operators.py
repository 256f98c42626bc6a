r"""Linear measurements y = A x of images: operators, their adjoints, and equations with A A^T.

A is any linear JAX function; JAX also derives its adjoint A^T. Inverse problems further need

    A^+ y                           the pseudo-inverse, A^T (A A^T)^+ y
    (scale A A^T + shift I)^-1 y    for the posterior of a Gaussian given y = A x + noise
                                    (Song et al. 2023, PiGDM, OpenReview 9_gsMA8MRKQ, Eq. 7)

If A A^T is known to be diagonal in an orthonormal basis, A A^T = B^T diag(gram) B, each is one
division. Otherwise conjugate gradients solve for them (Hestenes & Stiefel 1952). For the
pseudo-inverse they solve A^T A x = A^T y, which has a solution for every y.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.sparse.linalg import cg
from jax.tree_util import Partial
from jaxtyping import Array, Float, Shaped

from errors import require_in
from numerics.arrays import Batch, Shape, expand_like, pytree

Coefficient = float | Float[Array, "*batch"]
Table = Shaped[Array, "..."] | Shaped[np.ndarray, "..."]


@pytree(static=("shape", "tolerance", "iterations"))
@dataclass(frozen=True, kw_only=True)
class LinearOperator:
    """A linear map A of batches, (batch, *shape) -> (batch, *measurement_shape).

    Args:
        function: A, real-valued and linear. It is already closed over its arrays, best as a
            `jax.tree_util.Partial`: other numbers then need no new compilation.
        shape: shape of x without the batch.
        gram: the eigenvalues of A A^T if they are known: one number, or an array shaped like
            `basis(y)` without the batch.
        basis: the orthonormal map y -> (batch, *coordinates) in which A A^T is diag(gram); by
            default the identity.
        tolerance: conjugate gradients stop at this norm of the residual relative to y's, for each
            sample; in (0, 1).
        iterations: maximum number of their steps.

    Raises:
        ValueError: for a shape that is not positive, a number out of range, or a function that does
            not return floating point numbers.
    """

    function: Callable[[Batch], Batch]
    shape: Shape
    gram: float | Float[Array, "..."] | None = None
    basis: Callable[[Batch], Batch] | None = None
    tolerance: float = 1e-6
    iterations: int = 100

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape={self.shape} must have at least one axis, and no empty axis")
        require_in("tolerance", self.tolerance, "(0, 1)")
        require_in("iterations", self.iterations, "[1, inf)")
        for name in ("function", "basis"):
            value = getattr(self, name)
            if callable(value) and not isinstance(value, Partial):
                object.__setattr__(self, name, Partial(value))
        output = self._output
        if output.shape[:1] != (1,) or not jnp.issubdtype(output.dtype, jnp.floating):
            raise ValueError(
                f"function returns {output.dtype}{output.shape} for one item of shape "
                f"{self.shape}; it must return real numbers (batch, ...)"
            )

    @property
    def measurement_shape(self) -> Shape:
        """The shape of y without the batch."""
        return self._output.shape[1:]

    @property
    def count(self) -> Float[Array, ""]:
        """The number of entries of y that depend on x, which excludes masked ones."""
        # An entry that is 0 for random inputs is 0 for all.
        x = jax.random.normal(jax.random.key(0), (1, *self.shape))
        return jnp.sum(self.function(x) != 0).astype(x.dtype)

    @property
    def _output(self) -> jax.ShapeDtypeStruct:
        return jax.eval_shape(
            self.function, jax.ShapeDtypeStruct((1, *self.shape), jnp.result_type(float))
        )

    def __call__(self, x: Batch) -> Batch:
        """Return A x (batch, *measurement_shape) of x (batch, *shape); ValueError otherwise."""
        _require_shape("x", x, self.shape)
        return self.function(x)

    def adjoint(self, y: Batch) -> Batch:
        """Return A^T y (batch, *shape) of y (batch, *measurement_shape); ValueError otherwise."""
        _require_shape("y", y, self.measurement_shape)
        return _transposed(self.function, (len(y), *self.shape), y)

    def pseudo_inverse(self, y: Batch) -> Batch:
        """Return A^+ y, the smallest of all x whose A x is nearest to y.

        With `gram`, singular values of A count as 0 if they are below the largest one times the
        number of coordinates times the precision of y's numbers, the usual rank of a matrix.
        """
        if self.gram is not None:
            return self.adjoint(self.solve(y, 1.0, 0.0))
        # A^T y is in the range of A^T A for every y, so that this system always has a solution, and
        # the iteration from 0 finds the smallest one.
        return self._conjugate_gradients(lambda x: self.adjoint(self(x)), self.adjoint(y))

    def solve(self, y: Batch, scale: Coefficient, shift: Coefficient) -> Batch:
        """Return (scale A A^T + shift I)^-1 y, shaped like y.

        Args:
            y: the right side. With shift 0 and without `gram` it must be in the range of A.
            scale: of shape () or (batch,).
            shift: of shape () or (batch,); for 0 the inverse is the pseudo-inverse.
        """
        _require_shape("y", y, self.measurement_shape)
        scale = jnp.broadcast_to(jnp.asarray(scale, y.dtype), y.shape[:1])
        shift = jnp.broadcast_to(jnp.asarray(shift, y.dtype), y.shape[:1])
        if self.gram is None:

            def apply(y: Batch, scale: Coefficient, shift: Coefficient) -> Batch:
                return scale * self(self.adjoint(y)) + shift * y

            return self._conjugate_gradients(apply, y, scale, shift)
        coordinates = y if self.basis is None else self.basis(y)
        gram = self._significant_gram(coordinates)[None]
        values = expand_like(scale, coordinates) * gram + expand_like(shift, coordinates)
        # Two `where`, so that gradients do not contain the division by 0 either.
        solved = jnp.where(values == 0, 0, coordinates / jnp.where(values == 0, 1, values))
        return solved if self.basis is None else _transposed(self.basis, y.shape, solved)

    def in_range(self, y: Batch) -> Batch:
        """Return A A^+ y, the component of y (batch, *measurement_shape) in the range of A.

        Other components are removed, for example noise where a mask is 0.
        """
        return self(self.pseudo_inverse(y))

    def _significant_gram(self, coordinates: Batch) -> Float[Array, "..."]:
        """Return `gram` per coordinate, with 0 for values that are rounding errors."""
        gram = jnp.asarray(self.gram, coordinates.dtype)
        gram = jnp.broadcast_to(gram, coordinates.shape[1:])
        relative = gram.size * jnp.finfo(gram.dtype).eps
        return jnp.where(gram > relative**2 * jnp.max(gram), gram, 0)

    def _conjugate_gradients(
        self, apply: Callable[..., Batch], right: Batch, *coefficients: Float[Array, "batch"]
    ) -> Batch:
        """Solve apply(x, *coefficients) = right for x; each sample has its own number of steps."""

        def solve_one(right: Array, *coefficients: Array) -> Array:
            def apply_one(x: Array) -> Array:
                return apply(x[None], *coefficients)[0]

            solution, _ = cg(apply_one, right, tol=self.tolerance, maxiter=self.iterations)
            return solution

        return jax.vmap(solve_one)(right, *coefficients)


def _require_shape(name: str, value: Batch, shape: Shape) -> None:
    if value.shape[1:] != shape:
        expected = ", ".join(map(str, shape))
        raise ValueError(f"{name} has shape {value.shape}; it must be (batch, {expected})")


def _transposed(function: Callable[[Batch], Batch], shape: Shape, y: Batch) -> Batch:
    """Apply to y the transpose of a linear function of arrays of `shape`."""
    (x,) = jax.linear_transpose(function, jax.ShapeDtypeStruct(shape, y.dtype))(y)
    return x


def _closed(function: Callable[..., Batch], *arrays: np.ndarray) -> Partial:
    """Return the function closed over arrays, in JAX's current default precision."""
    return Partial(function, *map(jnp.asarray, arrays))


def from_function(
    function: Callable[[Batch], Batch],
    shape: Shape,
    *,
    tolerance: float = 1e-6,
    iterations: int = 100,
) -> LinearOperator:
    """Return the operator of a linear function (batch, *shape) -> (batch, ...).

    Conjugate gradients solve its equations. The arguments are those of `LinearOperator`.

    Raises:
        ValueError: for a function that JAX cannot transpose, or that does not map 0 to 0.
    """
    operator = LinearOperator(
        function=function, shape=shape, tolerance=tolerance, iterations=iterations
    )
    try:
        jax.eval_shape(
            operator.adjoint,
            jax.ShapeDtypeStruct((1, *operator.measurement_shape), jnp.result_type(float)),
        )
    except (NotImplementedError, TypeError, AssertionError) as error:
        raise ValueError(f"function={function} is not linear, so it has no adjoint") from error
    if jnp.any(operator(jnp.zeros((1, *shape))) != 0):
        raise ValueError(f"function={function} is not linear: it does not map 0 to 0")
    return operator


def from_matrix(matrix: Table) -> LinearOperator:
    """Decompose a matrix once, for y = matrix x with x (batch, columns) and y (batch, rows).

    Raises:
        ValueError: for an array that is not a matrix.
    """
    matrix = np.asarray(matrix, np.float64)
    if matrix.ndim != 2:
        raise ValueError(f"matrix has shape {matrix.shape}; it must be (rows, columns)")
    left, values, _ = np.linalg.svd(matrix)
    gram = np.zeros(len(matrix))
    gram[: len(values)] = values**2
    return LinearOperator(
        function=_closed(_matrix_product, matrix),
        shape=matrix.shape[1:],
        gram=jnp.asarray(gram),
        basis=_closed(_matrix_product, left.T),
    )


def _matrix_product(matrix: Array, x: Batch) -> Batch:
    return jnp.einsum("rc,bc->br", matrix.astype(x.dtype), x, precision="highest")


def inpainting(shape: Shape, mask: Table) -> LinearOperator:
    """Return the operator of known pixels, y = mask * x, which is 0 where x is unknown.

    Args:
        shape: shape of x without the batch.
        mask: 1 where x is known and 0 elsewhere, of shape (h, w), (h, w, 1) or (h, w, c).

    Raises:
        ValueError: for a mask of another shape or other values, or one without a known pixel.
    """
    mask = jnp.asarray(_as_mask(mask, shape))
    return LinearOperator(function=Partial(_masked, mask), shape=shape, gram=mask)


def colorization(shape: Shape) -> LinearOperator:
    """Return the operator of gray levels, y = (x_1 + ... + x_c) / sqrt(c) of shape (h, w, 1).

    The factor makes A A^T the identity.

    Raises:
        ValueError: for a shape that is not (h, w, c).
    """
    _require_image(shape)
    return LinearOperator(function=Partial(_gray), shape=shape, gram=1.0)


def downsampling(shape: Shape, factor: int) -> LinearOperator:
    """Return the operator of means of factor x factor pixels, y (h / factor, w / factor, c).

    Raises:
        ValueError: for a shape that is not (h, w, c), or a factor that does not divide h and w.
    """
    height, width, _ = _require_image(shape)
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"factor={factor} must divide the height {height} and the width {width}")
    # The factor is in the function, not in its arrays, because shapes depend on it.
    blocks = (height // factor, factor, width // factor, factor)
    return LinearOperator(function=Partial(_Blocks(blocks)), shape=shape, gram=1.0 / factor**2)


def blur(shape: Shape, std: float) -> LinearOperator:
    """Return the convolution with a Gaussian of `std` pixels, cut off at 4 std; y is like x.

    Beyond the border the image is mirrored (d c b a | a b c d | d c b a), so that the cosine
    transform diagonalizes the blur.

    Raises:
        ValueError: for a shape that is not (h, w, c), or a std that is not above 0.
    """
    height, width, _ = _require_image(shape)
    require_in("std", std, "(0, inf)")
    transforms = _cosine_matrix(height), _cosine_matrix(width)
    gains = _gaussian_gain(height, std), _gaussian_gain(width, std)
    matrices = [t.T @ (gain[:, None] * t) for t, gain in zip(transforms, gains, strict=True)]
    gram = np.broadcast_to(np.outer(*gains)[..., None] ** 2, shape)
    return LinearOperator(
        function=_closed(_along_axes, *matrices),
        shape=shape,
        gram=jnp.asarray(gram),
        basis=_closed(_along_axes, *transforms),
    )


def compressed_sensing(shape: Shape, fraction: float, seed: int = 0) -> LinearOperator:
    """Return random rows of the cosine transform of x with random signs; y is (rows,).

    The signs spread every image over all rows of the orthonormal transform. Any few rows then hold
    as much information as random projections, at the cost of an FFT (Do et al. 2012,
    arXiv:1106.5037).

    Args:
        shape: shape of x without the batch.
        fraction: number of rows over the size of x, in (0, 1].
        seed: for rows and signs.

    Raises:
        ValueError: for a fraction outside (0, 1].
    """
    require_in("fraction", fraction, "(0, 1]")
    random = np.random.default_rng(seed)
    size = math.prod(shape)
    signs = random.choice([-1.0, 1.0], size)
    rows = np.sort(random.choice(size, max(1, round(fraction * size)), replace=False))
    return LinearOperator(function=_closed(_random_rows, signs, rows), shape=shape, gram=1.0)


def fourier(shape: Shape, mask: Table) -> LinearOperator:
    """Return the undersampled unitary Fourier transform of each channel, y = mask * F x, as in MRI.

    y is (h, w, c, 2), its last axis the real and the imaginary part. Frequency 0 is at [0, 0], and
    negative frequencies are in the upper halves, as in `numpy.fft.fft2`.

    Args:
        shape: (h, w, c).
        mask: 1 for a measured frequency and 0 elsewhere, of shape (h, w), (h, w, 1) or (h, w, c);
            `cartesian_mask` makes one.

    Raises:
        ValueError: for a shape that is not (h, w, c), or a mask of another shape or other values.
    """
    _require_image(shape)
    # The only eigenvalues of A A^T are 0, 1/2 and 1: for a real image, a frequency and its negative
    # are equivalent, and one or both may be measured. Conjugate gradients need two steps.
    return LinearOperator(function=_closed(_frequencies, _as_mask(mask, shape)), shape=shape)


def cartesian_mask(
    shape: Shape, acceleration: float, center_fraction: float = 0.08, seed: int = 0
) -> Float[np.ndarray, "h w 1"]:
    """Return a mask for `fourier`: the columns of all lowest frequencies, and random others.

    Args:
        shape: (h, w, c).
        acceleration: the width over the number of columns that are kept.
        center_fraction: fraction of the width that is kept around frequency 0, in [0, 1].
        seed: for the random columns.

    Raises:
        ValueError: for a number out of range, or an acceleration that keeps fewer columns than
            `center_fraction`.
    """
    height, width, _ = _require_image(shape)
    if not 1 <= acceleration <= width:
        raise ValueError(f"acceleration={acceleration} must lie between 1 and the width {width}")
    require_in("center_fraction", center_fraction, "[0, 1]")
    order = np.argsort(np.abs(np.fft.fftfreq(width)), kind="stable")
    lowest, kept = max(1, round(center_fraction * width)), round(width / acceleration)
    if lowest > kept:
        raise ValueError(
            f"center_fraction={center_fraction} alone is {lowest} columns, but "
            f"acceleration={acceleration} keeps {kept} of {width}; lower one of them"
        )
    others = np.random.default_rng(seed).permutation(order[lowest:])[: kept - lowest]
    mask = np.zeros((height, width, 1))
    mask[:, np.concatenate([order[:lowest], others])] = 1
    return mask


def _require_image(shape: Shape) -> Shape:
    """Return `shape`; raise ValueError unless it is (height, width, channels)."""
    if len(shape) != 3:
        raise ValueError(f"shape={shape} must be (height, width, channels)")
    return shape


def _as_mask(mask: Table, shape: Shape) -> Float[np.ndarray, "..."]:
    """Return the mask broadcast to `shape`; raise ValueError unless it is a mask of such images."""
    mask = np.asarray(mask, np.float64)
    given = mask.shape
    if given == shape[:-1]:
        mask = mask[..., None]
    if mask.shape not in (shape, (*shape[:-1], 1)):
        raise ValueError(
            f"mask has shape {given}; for images of shape {shape} it must be {shape[:-1]}, "
            f"{(*shape[:-1], 1)} or {shape}"
        )
    if not np.isin(mask, (0, 1)).all():
        raise ValueError("mask has values other than 0 and 1; round it first")
    if not mask.any():
        raise ValueError("mask is 0 everywhere, so that nothing is known; it needs at least one 1")
    return np.broadcast_to(mask, shape)


def _masked(mask: Array, x: Batch) -> Batch:
    return mask.astype(x.dtype)[None] * x


def _gray(x: Batch) -> Batch:
    return jnp.sum(x, axis=-1, keepdims=True) / math.sqrt(x.shape[-1])


@dataclass(frozen=True)
class _Blocks:
    """Means of blocks of pixels; `blocks` is (rows, factor, columns, factor)."""

    blocks: Shape

    def __call__(self, x: Batch) -> Batch:
        return jnp.mean(x.reshape(len(x), *self.blocks, x.shape[-1]), axis=(2, 4))


def _along_axes(rows: Array, columns: Array, x: Batch) -> Batch:
    """Multiply by a matrix along the height and by one along the width."""
    x = jnp.einsum("hi,biwc->bhwc", rows.astype(x.dtype), x, precision="highest")
    return jnp.einsum("wj,bhjc->bhwc", columns.astype(x.dtype), x, precision="highest")


def _cosine_matrix(size: int) -> Float[np.ndarray, "size size"]:
    """Return the orthonormal cosine transform (DCT-II): row k is cos(pi k (i + 1/2) / size)."""
    places = np.arange(size)
    rows = np.cos(math.pi / size * places[:, None] * (places + 0.5)) * math.sqrt(2 / size)
    rows[0] = 1 / math.sqrt(size)
    return rows


def _gaussian_gain(size: int, std: float) -> Float[np.ndarray, "size"]:
    """Return the factor by which the blur scales each row of the cosine transform."""
    offsets = np.arange(-round(4 * std), round(4 * std) + 1)
    kernel = np.exp(-0.5 * (offsets / std) ** 2)
    frequencies = math.pi / size * np.arange(size)[:, None]
    return np.cos(frequencies * offsets) @ (kernel / kernel.sum())


def _random_rows(signs: Array, rows: Array, x: Batch) -> Batch:
    signed = signs.astype(x.dtype)[None] * x.reshape(len(x), -1)
    return jax.scipy.fft.dct(signed, norm="ortho")[:, rows]


def _frequencies(mask: Array, x: Batch) -> Batch:
    spectrum = mask.astype(x.dtype)[None] * jnp.fft.fft2(x, axes=(1, 2), norm="ortho")
    return jnp.stack([spectrum.real, spectrum.imag], axis=-1)
