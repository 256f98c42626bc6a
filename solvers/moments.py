r"""Second moments of the noise that a network predicts, which Analytic-DPM turns into variances.

    Gamma(t) = E ||eps(x_t, t)||^2 / d,    x_t = alpha x0 + sigma eps,    x0 from the data

(Bao et al. 2022, arXiv:2201.06503; their Gamma_n of Eq. 8 is ours / sigma^2.) The true noise has
the moment 1, and its best prediction has less: 0 <= Gamma <= 1. The difference 1 - Gamma is the
uncertainty of the noise given x_t. It is small at large t, so the drawn noise is a good control
variate: with c = Cov(||eps(x_t, t)||^2, ||eps||^2) / Var(||eps||^2) the estimate is

    Gamma = mean ||eps(x_t, t)||^2 / d - c (mean ||eps||^2 / d - 1).

Its expectation is that of the paper (up to 1/n), and its error falls with 1 - Gamma.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from denoising import Denoiser
from files.arrays import open_arrays
from files.paths import AnyPath
from files.writing import write_npz
from numerics.arrays import Batch, normal_like, sample_keys, sum_per_sample, whole
from objectives.uncertainty import MeasuredUncertainty
from sampling import Scalar
from sde_lib import SDE
from solvers.tables import Coefficients, coefficients_at

_FORMAT = "eps moments, version 1"


@dataclass(frozen=True, kw_only=True, eq=False)
class EpsMoments:
    """Gamma on a grid of times, in NumPy's float64.

    Args:
        times: decreasing, from 1 to where sampling stops.
        half_log_snr: log(alpha / sigma) of the process at these times, in which Gamma is
            interpolated.
        values: Gamma; estimates may leave [0, 1] a little.
        errors: standard errors of the values, 0 if the values are exact.

    Raises:
        ValueError: for arrays of another type or shape, or with impossible values.
    """

    times: np.ndarray
    half_log_snr: np.ndarray
    values: np.ndarray
    errors: np.ndarray

    def __post_init__(self) -> None:
        for field in fields(self):
            array = getattr(self, field.name)
            if array.dtype != np.float64 or array.shape != (len(self.times),) or len(array) < 2:
                raise ValueError(
                    f"{field.name} of the moments is {array.dtype}{list(array.shape)}, but all "
                    "arrays must be float64 of one length, at least 2"
                )
            if not np.isfinite(array).all():
                raise ValueError(f"{field.name} of the moments has NaN or infinite entries")
        if self.times[0] != 1 or not (np.diff(self.times) < 0).all() or self.times[-1] < 0:
            raise ValueError("times of the moments must decrease from 1, and not below 0")
        if not (np.diff(self.half_log_snr) > 0).all():
            raise ValueError("half_log_snr of the moments must increase")
        if self.values.min() < -0.1 or self.errors.min() < 0:
            raise ValueError("values and errors of the moments must not be negative")

    def at(self, sde: SDE, coefficients: Coefficients) -> Float[np.ndarray, "times"]:
        """Return Gamma, clipped to [0, 1], at some times.

        Args:
            sde: the process, which must be the one that Gamma was measured on.
            coefficients: the coefficients of the process at the times.

        Raises:
            ValueError: for another process, or times below those of the moments.
        """
        # The stored values may be rounded as on another machine; processes differ by much more.
        if not np.allclose(
            coefficients_at(sde, self.times).half_log_snr, self.half_log_snr, rtol=1e-6, atol=1e-6
        ):
            raise ValueError(
                "the moments were measured on another process; run --mode=moments again"
            )
        if coefficients.t.min() < self.times[-1] * (1 - 1e-6):
            raise ValueError(
                f"the moments end at t={self.times[-1]:.4g}, but they are needed at "
                f"t={coefficients.t.min():.4g}; raise t_min, or run --mode=moments with this "
                "configuration"
            )
        return np.clip(np.interp(coefficients.half_log_snr, self.half_log_snr, self.values), 0, 1)

    def uncertainty(
        self, sde: SDE, times: Float[np.ndarray, "times"], radius: float = np.inf
    ) -> MeasuredUncertainty:
        """Return 1 - Gamma at the times of evaluations, for variances of reverse steps.

        Args:
            sde: the process, as in `at`.
            times: decreasing times.
            radius: half the width of the interval of the data, which bounds the uncertainty.

        Raises:
            ValueError: as `at`.
        """
        coefficients = coefficients_at(sde, times)
        bound = radius**2 * np.exp(2 * coefficients.half_log_snr)
        values = np.minimum(1 - self.at(sde, coefficients), bound)
        return MeasuredUncertainty(
            half_log_snr=jnp.asarray(coefficients.half_log_snr), values=jnp.asarray(values)
        )

    def save(self, path: AnyPath) -> None:
        """Write the moments atomically to a file whose name ends in .npz."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        write_npz(path, {"format": np.array(_FORMAT), **arrays})

    @classmethod
    def load(cls, path: AnyPath) -> "EpsMoments":
        """Load moments from a file that `save` wrote.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is damaged or of another kind.
        """
        if not path.exists():
            raise FileNotFoundError(f"{path}: there are no moments; run --mode=moments first")
        try:
            with open_arrays(path, str(path)) as arrays:
                if arrays["format"] != _FORMAT:
                    raise ValueError("another format")
                return cls(**{field.name: arrays[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} is damaged or not a file of moments; run --mode=moments again"
            ) from error


def estimate_moments(
    key: Key[Array, ""],
    denoiser: Denoiser,
    batches: Iterable[Batch],
    times: Float[np.ndarray, "times"],
) -> EpsMoments:
    """Estimate Gamma at decreasing times by a mean over images.

    The cost is one network evaluation per image and time. The estimate depends on the images and
    their order, but not on the batch sizes.

    Args:
        key: image k gets the noise of fold_in(key, k).
        denoiser: the network.
        batches: batches of images in the network's range, at least 3 images in total.
        times: such as those of a `Schedule` with the log_snr grid, or all timesteps of a chain.

    Raises:
        ValueError: for too few images, or a network that returns NaN.
    """
    return moments_of(denoiser.sde, times, _measured(key, denoiser, batches, times))


def _measured(
    key: Key[Array, ""], denoiser: Denoiser, batches: Iterable[Batch], times: np.ndarray
) -> Iterable[np.ndarray]:
    first = 0
    for x in batches:
        indices = first + jnp.arange(len(x))
        yield whole(squared_noise(key, denoiser, x, times, indices))
        first += len(x)


def squared_noise(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x: Batch,
    times: Float[np.ndarray, "times"],
    indices: Int[Array, "batch"],
) -> Float[Array, "rows batch"]:
    """Return ||eps||^2 / d of the noise drawn for each image (row 0), and of its predictions.

    Row 1 + i has the predictions at times[i]. Image k has the noise of fold_in(key, indices[k]) at
    all times: the errors at different times are correlated, and Gamma is smooth in t. `moments_of`
    combines the results. `estimate_moments` does both; use this for images with labels, or for
    parts that are stored.
    """
    rows = [_squares(key, denoiser, x, indices, jnp.asarray(t, x.dtype)) for t in times]
    return jnp.stack([rows[0][0], *[predicted for _, predicted in rows]])


@jax.jit
def _squares(
    key: Key[Array, ""], denoiser: Denoiser, x: Batch, indices: Int[Array, "batch"], t: Scalar
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    eps = normal_like(sample_keys(key, indices), x)
    predicted = denoiser.predict(denoiser.sde.perturb(x, t, eps), t).eps
    dims = x[0].size
    return sum_per_sample(eps**2) / dims, sum_per_sample(predicted**2) / dims


def moments_of(
    sde: SDE, times: Float[np.ndarray, "times"], parts: Iterable[np.ndarray]
) -> EpsMoments:
    """Combine results of `squared_noise` to moments.

    Raises:
        ValueError: for fewer than 3 images, or parts with NaN.
    """
    count, sums, products = 0, np.zeros(1 + len(times)), np.zeros((2, 1 + len(times)))
    for part in parts:
        # All values are near 1. Their squares keep more digits once it is subtracted.
        part = np.asarray(part, np.float64) - 1
        count += part.shape[1]
        sums = sums + part.sum(axis=1)
        products = products + np.stack([(part * part[0]).sum(axis=1), (part**2).sum(axis=1)])
    if count < 3:
        raise ValueError(f"moments need at least 3 images, not {count}; 1000 make a good estimate")
    mean = sums / count
    with_noise, own = products / count - np.stack([mean * mean[0], mean**2])
    slope = with_noise / own[0]
    values = 1 + mean - slope * mean[0]
    residual = np.maximum(own - slope * with_noise, 0)  # variance that the noise does not explain
    errors = np.sqrt(residual / (count - 2))
    return EpsMoments(
        times=np.asarray(times, np.float64),
        half_log_snr=coefficients_at(sde, np.asarray(times, np.float64)).half_log_snr,
        values=values[1:],
        errors=errors[1:],
    )
