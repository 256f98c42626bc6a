r"""Weights of the noise levels, by name: lambda(t) / sigma(t)^2.

They multiply the squared error of the predicted noise. Squared errors of other predictions are the
same one with another weight, since all encode the same (x0, eps): with s = sigma / alpha,

    ||x0_hat - x0||^2 = s^2 ||eps_hat - eps||^2,    ||v_hat - v||^2 = (1 + s^2) ||eps_hat - eps||^2

So each weight means the same for any parameterization of the network.
"""

import abc
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from errors import require_in
from objectives.times import Times, log_snr_speed
from sde_lib import SDE


class Weight(abc.ABC):
    """Base of the weights."""

    @abc.abstractmethod
    def __call__(self, sde: SDE, t: Times) -> Times:
        """Return the weight of the squared error of the predicted noise at t (batch,)."""


@dataclass(frozen=True, kw_only=True)
class Sigma2(Weight):
    """lambda = sigma^2, the squared error of the noise: the simple loss of SMLD and DDPM."""

    def __call__(self, sde: SDE, t: Times) -> Times:
        """Return 1."""
        return jnp.ones_like(t)


@dataclass(frozen=True, kw_only=True)
class G2(Weight):
    """lambda = g^2, twice the bound on the likelihood (arXiv:2101.09258, Theorem 1)."""

    def __call__(self, sde: SDE, t: Times) -> Times:
        """Return g^2 / sigma^2."""
        return log_snr_speed(sde, t)


@dataclass(frozen=True, kw_only=True)
class X0(Weight):
    """The squared error of the predicted x0."""

    def __call__(self, sde: SDE, t: Times) -> Times:
        """Return s^2."""
        return jnp.exp(-sde.log_snr(t))


@dataclass(frozen=True, kw_only=True)
class V(Weight):
    """The squared error of v = alpha eps - sigma x0 (Salimans & Ho 2022, arXiv:2202.00512).

    It is their weight SNR + 1 of the error of x0. Where alpha^2 + sigma^2 is not 1, it divides the
    error of v.
    """

    def __call__(self, sde: SDE, t: Times) -> Times:
        """Return 1 + s^2."""
        return 1 + jnp.exp(-sde.log_snr(t))


@dataclass(frozen=True, kw_only=True)
class TruncatedSNR(Weight):
    """The weight max(SNR, 1) of x0's error (Salimans & Ho 2022, arXiv:2202.00512, Section 4)."""

    def __call__(self, sde: SDE, t: Times) -> Times:
        """Return max(1, s^2)."""
        return jnp.maximum(1.0, jnp.exp(-sde.log_snr(t)))


@dataclass(frozen=True, kw_only=True)
class Velocity(Weight):
    """The squared error of the velocity eps - x0 of a straight path (arXiv:2210.02747, Eq. 23)."""

    def __call__(self, sde: SDE, t: Times) -> Times:
        """Return (1 + s)^2."""
        return (1 + jnp.exp(-sde.log_snr(t) / 2)) ** 2


@dataclass(frozen=True, kw_only=True)
class Bridge(Weight):
    """The squared error of (x_t - x0) / sqrt(sigma) (Liu et al. 2023, arXiv:2302.05872, Eq. 12)."""

    def __call__(self, sde: SDE, t: Times) -> Times:
        """Return sigma / alpha^2."""
        return sde.sigma(t) / sde.alpha(t) ** 2


@dataclass(frozen=True, kw_only=True)
class EDM(Weight):
    """The weight (s^2 + sigma_data^2) / (s sigma_data)^2 of x0's error (arXiv:2206.00364, Table 1).

    The error of EDM's raw network output has weight 1.

    Args:
        sigma_data: standard deviation of the data.
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        require_in("sigma_data", self.sigma_data, "(0, inf)")

    def __call__(self, sde: SDE, t: Times) -> Times:
        """Return 1 + s^2 / sigma_data^2."""
        return 1 + jnp.exp(-sde.log_snr(t)) / self.sigma_data**2


@dataclass(frozen=True, kw_only=True)
class MinSNR(Weight):
    """The weight min(SNR, gamma) of x0's error (Hang et al. 2023, arXiv:2303.09556, Section 3.4).

    Args:
        gamma: the largest weight; 5 there.
    """

    gamma: float | None = None

    def __post_init__(self) -> None:
        if self.gamma is None:
            raise ValueError("gamma must be given for name='min_snr'; the paper takes 5")
        require_in("gamma", self.gamma, "(0, inf)")

    def __call__(self, sde: SDE, t: Times) -> Times:
        """Return min(1, gamma / SNR)."""
        assert self.gamma is not None
        return jnp.minimum(1.0, self.gamma * jnp.exp(-sde.log_snr(t)))


@dataclass(frozen=True, kw_only=True)
class Sigmoid(Weight):
    """The weight sigmoid(bias - log_snr) (Kingma & Gao 2023, arXiv:2303.00848).

    There it is a weight per unit of log-SNR. So combine it with the times log_snr and
    divide_density=False.

    Args:
        bias: the log-SNR where the weight is 1/2.
    """

    bias: float = 2.0

    def __post_init__(self) -> None:
        require_in("bias", self.bias, "(-inf, inf)")

    def __call__(self, sde: SDE, t: Times) -> Times:
        """Return sigmoid(bias - log_snr)."""
        return jax.nn.sigmoid(self.bias - sde.log_snr(t))


WEIGHTS: dict[str, type[Weight]] = {
    "sigma2": Sigma2,
    "g2": G2,
    "x0": X0,
    "v": V,
    "truncated_snr": TruncatedSNR,
    "velocity": Velocity,
    "bridge": Bridge,
    "edm": EDM,
    "min_snr": MinSNR,
    "sigmoid": Sigmoid,
}
