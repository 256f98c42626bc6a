r"""Linear measurements y = A x of images: the operator, its adjoint, and the equations with A A^T.

A is any linear function of JAX; its adjoint A^T comes from JAX too. What inverse problems need
beside them are

    A^+ y                           the pseudo-inverse, A^T (A A^T)^+ y
    (scale A A^T + shift I)^-1 y    of the posterior of a Gaussian given y = A x + noise
                                    (Song et al. 2023, PiGDM, OpenReview 9_gsMA8MRKQ, Eq. 7)

Where A A^T is known to be diagonal in an orthonormal basis, A A^T = B^T diag(gram) B, both are one
division; else they are found by conjugate gradients (Hestenes & Stiefel 1952), the pseudo-inverse
from A^T A x = A^T y, which has a solution for every y.

Nothing here knows about ranges of data: A is linear in what it is given.
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

from numerics.arrays import expand_like, pytree

Batch = Float[Array, "batch ..."]
Shape = tuple[int, ...]
Coefficient = float | Float[Array, "*batch"]
Table = Shaped[Array, "..."] | Shaped[np.ndarray, "..."]


@pytree(static=("shape", "tolerance", "iterations"))
@dataclass(frozen=True, kw_only=True)
class LinearOperator:
    """A linear map A of batches, (batch, *shape) -> (batch, *measurement_shape).

    Args:
      function: A, real-valued and linear; already closed over its arrays, best as
        `jax.tree_util.Partial`, so that other numbers need no new compilation.
      shape: of x, without the batch.
      gram: the eigenvalues of A A^T, one number or an array of the shape of `basis(y)` without the
        batch; None if they are not known.
      basis: the orthonormal map y -> (batch, *coordinates) in which A A^T is diag(gram); None if
        that is y itself.
      tolerance: where conjugate gradients stop, as the residual's norm over y's, for each sample.
      iterations: the most steps they take.

    Raises:
      ValueError: for a shape that is not positive, a tolerance outside (0, 1), iterations below 1,
        or a function that does not answer floating point numbers.
    """

    function: Callable[[Batch], Batch]
    shape: Shape
    gram: float | Float[Array, "..."] | None = None
    basis: Callable[[Batch], Batch] | None = None
    tolerance: float = 1e-6
    iterations: int = 100

    def __post_init__(self) -> None:
        if not self.shape or min(self.shape) < 1:
            raise ValueError(f"shape={self.shape} must name at least one axis, and none empty")
        if not 0 < self.tolerance < 1:
            raise ValueError(f"tolerance={self.tolerance} must lie between 0 and 1")
        if self.iterations < 1:
            raise ValueError(f"iterations={self.iterations} must be at least 1")
        for name in ("function", "basis"):
            value = getattr(self, name)
            if callable(value) and not isinstance(value, Partial):
                object.__setattr__(self, name, Partial(value))
        answer = self._answer
        if answer.shape[:1] != (1,) or not jnp.issubdtype(answer.dtype, jnp.floating):
            raise ValueError(
                f"function answers {answer.dtype}{answer.shape} to one item of shape {self.shape}; "
                "it must answer real numbers (batch, ...)"
            )

    @property
    def measurement_shape(self) -> Shape:
        """The shape of y, without the batch."""
        return self._answer.shape[1:]

    @property
    def count(self) -> Float[Array, ""]:
        """How many numbers of y depend on x at all: those that no mask makes 0."""
        # What random numbers do not move, no others do.
        x = jax.random.normal(jax.random.key(0), (1, *self.shape))
        return jnp.sum(self.function(x) != 0).astype(x.dtype)

    @property
    def _answer(self) -> jax.ShapeDtypeStruct:
        return jax.eval_shape(self.function, jax.ShapeDtypeStruct((1, *self.shape), float))

    def __call__(self, x: Batch) -> Batch:
        """A x (batch, *measurement_shape) of x (batch, *shape); ValueError for another shape."""
        _require("x", x, self.shape)
        return self.function(x)

    def adjoint(self, y: Batch) -> Batch:
        """A^T y (batch, *shape) of y (batch, *measurement_shape); ValueError for another shape."""
        _require("y", y, self.measurement_shape)
        return _transposed(self.function, (len(y), *self.shape), y)

    def pseudo_inverse(self, y: Batch) -> Batch:
        """A^+ y = A^T (A A^T)^+ y, the smallest x of those whose A x is nearest to y.

        Eigenvalues of A A^T count as 0 whose root is below the largest's by the number of
        coordinates times the precision of y's numbers, the usual rank of a matrix.
        """
        if self.gram is not None:
            return self.adjoint(self.solve(y, 1.0, 0.0))
        # A^T y is in the range of A^T A whatever y is, so that this system always has a solution,
        # and the steps from 0 find the smallest.
        return self._conjugate_gradients(lambda x: self.adjoint(self(x)), self.adjoint(y))

    def solve(self, y: Batch, scale: Coefficient, shift: Coefficient) -> Batch:
        """(scale A A^T + shift I)^-1 y, shaped like y; scale and shift of shape () or (batch,).

        With shift 0 it is the pseudo-inverse, which without `gram` needs a y in the range of A.
        """
        _require("y", y, self.measurement_shape)
        scale = jnp.broadcast_to(jnp.asarray(scale, y.dtype), y.shape[:1])
        shift = jnp.broadcast_to(jnp.asarray(shift, y.dtype), y.shape[:1])
        if self.gram is None:

            def apply(y: Batch, scale: Coefficient, shift: Coefficient) -> Batch:
                return scale * self(self.adjoint(y)) + shift * y

            return self._conjugate_gradients(apply, y, scale, shift)
        coordinates = y if self.basis is None else self.basis(y)
        gram = self._significant_gram(coordinates)[None]
        values = expand_like(scale, coordinates) * gram + expand_like(shift, coordinates)
        # Twice `where`, so that gradients do not meet the division by 0 either.
        answer = jnp.where(values == 0, 0, coordinates / jnp.where(values == 0, 1, values))
        return answer if self.basis is None else _transposed(self.basis, y.shape, answer)

    def in_range(self, y: Batch) -> Batch:
        """A A^+ y, the part of y (batch, *measurement_shape) that is some A x.

        What else y has, say noise where a mask keeps nothing, A^T takes away.
        """
        return self(self.pseudo_inverse(y))

    def _significant_gram(self, coordinates: Batch) -> Float[Array, "..."]:
        """`gram` for each coordinate, with 0 in the place of what is 0 but for rounding."""
        gram = jnp.asarray(self.gram, coordinates.dtype)
        gram = jnp.broadcast_to(gram, coordinates.shape[1:])
        relative = gram.size * jnp.finfo(gram.dtype).eps
        return jnp.where(gram > relative**2 * jnp.max(gram), gram, 0)

    def _conjugate_gradients(
        self, apply: Callable[..., Batch], right: Batch, *coefficients: Coefficient
    ) -> Batch:
        """x with apply(x, *coefficients) = right, where each sample has steps of its own."""

        def solve_one(right: Array, *coefficients: Array) -> Array:
            def apply_one(x: Array) -> Array:
                return apply(x[None], *coefficients)[0]

            answer, _ = cg(apply_one, right, tol=self.tolerance, maxiter=self.iterations)
            return answer

        return jax.vmap(solve_one)(right, *coefficients)


def _require(name: str, value: Batch, shape: Shape) -> None:
    if value.shape[1:] != shape:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{name} has shape {value.shape}; it must be (batch, {wanted})")


def _transposed(function: Callable[[Batch], Batch], shape: Shape, y: Batch) -> Batch:
    """The transpose of a linear function of arrays of `shape`, of y."""
    (x,) = jax.linear_transpose(function, jax.ShapeDtypeStruct(shape, y.dtype))(y)
    return x


def _closed(function: Callable[..., Batch], *arrays: np.ndarray) -> Partial:
    """The function closed over arrays, in the precision that JAX computes in now."""
    return Partial(function, *map(jnp.asarray, arrays))


# --- any function, any matrix -----------------------------------------------------------------


def from_function(
    function: Callable[[Batch], Batch],
    shape: Shape,
    *,
    tolerance: float = 1e-6,
    iterations: int = 100,
) -> LinearOperator:
    """The operator of a linear function (batch, *shape) -> (batch, ...), by conjugate gradients.

    Raises:
      ValueError: for a function that JAX cannot transpose, or that makes something of nothing.
    """
    operator = LinearOperator(
        function=function, shape=shape, tolerance=tolerance, iterations=iterations
    )
    try:
        jax.eval_shape(
            operator.adjoint, jax.ShapeDtypeStruct((1, *operator.measurement_shape), float)
        )
    except (NotImplementedError, TypeError, AssertionError) as error:
        raise ValueError(f"function={function} is not linear, so it has no adjoint") from error
    if jnp.any(operator(jnp.zeros((1, *shape))) != 0):
        raise ValueError(f"function={function} is not linear: it does not map 0 to 0")
    return operator


def from_matrix(matrix: Table) -> LinearOperator:
    """y = matrix x for x (batch, columns) and y (batch, rows); its decomposition is taken once.

    Raises:
      ValueError: for an array that is no matrix.
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


# --- images -----------------------------------------------------------------------------------


def inpainting(shape: Shape, mask: Table) -> LinearOperator:
    """Known pixels, y = mask * x, which is shaped like x and 0 where nothing is known.

    Args:
      mask: 1 where x is known and 0 elsewhere, of shape (h, w), (h, w, 1) or (h, w, c).

    Raises:
      ValueError: for a mask of another shape or other values, or one without a known pixel.
    """
    mask = jnp.asarray(_as_mask(mask, shape))
    return LinearOperator(function=Partial(_masked, mask), shape=shape, gram=mask)


def colorization(shape: Shape) -> LinearOperator:
    """Grey level, y = (x_1 + ... + x_c) / sqrt(c) of shape (h, w, 1): an orthonormal row of colour.

    Raises:
      ValueError: for a shape that is not (h, w, c).
    """
    _require_image(shape)
    return LinearOperator(function=Partial(_grey), shape=shape, gram=1.0)


def downsampling(shape: Shape, factor: int) -> LinearOperator:
    """Means of blocks of factor x factor pixels, y of shape (h / factor, w / factor, c).

    Raises:
      ValueError: for a shape that is not (h, w, c), or a factor that does not divide h and w.
    """
    height, width, _ = _require_image(shape)
    if factor < 1 or height % factor or width % factor:
        raise ValueError(f"factor={factor} must divide the height {height} and the width {width}")
    # The function's type, not its arrays, holds the factor: shapes depend on it.
    blocks = (height // factor, factor, width // factor, factor)
    return LinearOperator(function=Partial(_Blocks(blocks)), shape=shape, gram=1.0 / factor**2)


def blur(shape: Shape, std: float) -> LinearOperator:
    """Convolution with a Gaussian of `std` pixels, cut off at 4 std; y is shaped like x.

    At the border the image goes on as its mirror image (d c b a | a b c d | d c b a), so that the
    cosine transform makes the blur diagonal.

    Raises:
      ValueError: for a shape that is not (h, w, c), or a std that is not above 0.
    """
    height, width, _ = _require_image(shape)
    if not 0 < std < math.inf:
        raise ValueError(f"std={std} must be finite and above 0")
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
    """A random `fraction` of the numbers in the cosine transform of x with random signs.

    The signs spread every image over all rows of the orthonormal transform, so that any few of
    them tell as much as random projections do (Do et al. 2012, arXiv:1106.5037), at the cost of an
    FFT. y is (rows,).

    Raises:
      ValueError: for a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction={fraction} must lie in (0, 1]")
    random = np.random.default_rng(seed)
    size = math.prod(shape)
    signs = random.choice([-1.0, 1.0], size)
    rows = np.sort(random.choice(size, max(1, round(fraction * size)), replace=False))
    return LinearOperator(function=_closed(_random_rows, signs, rows), shape=shape, gram=1.0)


def fourier(shape: Shape, mask: Table) -> LinearOperator:
    """Undersampled unitary Fourier transform of each channel, y = mask * F x, as in MRI.

    y is (h, w, c, 2), its last axis the real and the imaginary part; frequency 0 is at [0, 0], and
    the negative ones are in the upper halves, as in `numpy.fft.fft2`.

    Args:
      mask: 1 for a frequency that is measured and 0 elsewhere, of shape (h, w), (h, w, 1) or
        (h, w, c); `cartesian_mask` makes one.

    Raises:
      ValueError: for a shape that is not (h, w, c), a mask of another shape or other values.
    """
    _require_image(shape)
    # A A^T has no eigenvalues but 0, 1/2 and 1 (a frequency with or without its negative, which
    # tells the same of a real image), so that conjugate gradients are done after two steps.
    return LinearOperator(function=_closed(_frequencies, _as_mask(mask, shape)), shape=shape)


def cartesian_mask(
    shape: Shape, acceleration: float, center_fraction: float = 0.08, seed: int = 0
) -> Float[np.ndarray, "h w 1"]:
    """Columns of frequencies for `fourier`: all of the lowest, and random ones of the others.

    Args:
      acceleration: width over the number of columns that are kept.
      center_fraction: share of the width that is kept around frequency 0.

    Raises:
      ValueError: for an acceleration below 1 or one that leaves no more than the centre, or a
        centre outside [0, 1].
    """
    height, width, _ = _require_image(shape)
    if not 1 <= acceleration <= width:
        raise ValueError(f"acceleration={acceleration} must lie between 1 and the width {width}")
    if not 0 <= center_fraction <= 1:
        raise ValueError(
            f"center_fraction={center_fraction} is a share of the width; it must lie in [0, 1]"
        )
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
    if len(shape) != 3:
        raise ValueError(f"shape={shape} must be (height, width, channels)")
    return shape


def _as_mask(mask: Table, shape: Shape) -> Float[np.ndarray, "..."]:
    """The mask for every number of an item of `shape`."""
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
        raise ValueError("mask is 0 everywhere: nothing is known; give it at least one 1")
    return np.broadcast_to(mask, shape)


def _masked(mask: Array, x: Batch) -> Batch:
    return mask.astype(x.dtype)[None] * x


def _grey(x: Batch) -> Batch:
    return jnp.sum(x, axis=-1, keepdims=True) / math.sqrt(x.shape[-1])


@dataclass(frozen=True)
class _Blocks:
    """Block means; blocks is (rows, factor, columns, factor)."""

    blocks: Shape

    def __call__(self, x: Batch) -> Batch:
        return jnp.mean(x.reshape(len(x), *self.blocks, x.shape[-1]), axis=(2, 4))


def _along_axes(rows: Array, columns: Array, x: Batch) -> Batch:
    """A matrix along the height and one along the width."""
    x = jnp.einsum("hi,biwc->bhwc", rows.astype(x.dtype), x, precision="highest")
    return jnp.einsum("wj,bhjc->bhwc", columns.astype(x.dtype), x, precision="highest")


def _cosine_matrix(size: int) -> Float[np.ndarray, "size size"]:
    """The orthonormal cosine transform (DCT-II): row k is cos(pi k (i + 1/2) / size)."""
    places = np.arange(size)
    rows = np.cos(math.pi / size * places[:, None] * (places + 0.5)) * math.sqrt(2 / size)
    rows[0] = 1 / math.sqrt(size)
    return rows


def _gaussian_gain(size: int, std: float) -> Float[np.ndarray, "size"]:
    """What blurring leaves of each row of the cosine transform."""
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
