r"""One objective: the weighted Fisher divergence of model and data at all noise levels.

    E_t lambda(t) E || s(x_t, t) - grad log p(x_t | x_0) ||^2,   x_t = alpha x_0 + sigma eps

(denoising score matching, Vincent 2011; Song et al. 2021, arXiv:2011.13456, Eq. 7). Because
grad log p(x_t | x_0) = -eps / sigma, the squared norm is || eps - eps_hat ||^2 / sigma^2, so that

    lambda = sigma^2   is the plain error of the predicted noise (DDPM's simple loss, SMLD's loss);
    lambda = g^2       bounds the negative log-likelihood (arXiv:2101.09258, Theorem 1).

The second weighs the error by g^2 / sigma^2, which can grow as 1 / t near 0: a noisy mean over
uniform times. But it is -d log_snr / dt. Times whose log-SNR is uniform have the density
(g^2 / sigma^2) / (log_snr(t_min) - log_snr(1)), and divided by it all errors weigh the same, with
the expectation that uniform times have (Section 5.1 there).
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from arrays import expand_like, sum_per_sample
from denoising import Denoiser
from sde_lib import SDE

Times = Float[Array, "batch"]


def _uniform(key: Key[Array, ""], batch: int) -> Times:
    return jax.random.uniform(key, (batch,))


def _stratified(key: Key[Array, ""], batch: int) -> Times:
    # One shared offset (Kingma et al. 2021, arXiv:2107.00630, appendix I.1): each time is uniform,
    # and together they cover [0, 1] evenly, which lowers the variance of the batch's loss.
    return (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1.0


# How a batch of times is drawn on [0, 1].
TIME_SAMPLERS = {"uniform": _uniform, "stratified": _stratified}
LEVELS = "levels"  # the times i / (levels - 1), i = 0 .. levels - 1, of discrete training
LOG_SNR = "log_snr"  # stratified in the log-SNR, and weighted to the expectation of uniform times

# lambda(t) / sigma(t)^2, the weight on the squared error of the predicted noise.
WEIGHTS: dict[str, Callable[[SDE, Times], Times]] = {
    "sigma2": lambda sde, t: jnp.ones_like(t),
    "g2": lambda sde, t: sde.squared_diffusion(t) / sde.sigma(t) ** 2,
}

# From the sum over a sample's dimensions to its loss.
REDUCTIONS: dict[str, Callable[[int], float]] = {
    "mean": lambda dims: 1.0 / dims,
    "half_sum": lambda dims: 0.5,
}


@dataclass(frozen=True, kw_only=True)
class ScoreMatching:
    """Weighted denoising score matching.

    Args:
      weight: lambda, a name in WEIGHTS.
      times: how times are drawn on [t_min, 1], a name in TIME_SAMPLERS; or "log_snr", which has
        the expectation of "uniform" and is for weight="g2", whose variance it lowers; or "levels",
        uniform on the grid i / (levels - 1) of SMLD's and DDPM's discrete objectives, which has no
        t_min.
      levels: number of times on that grid.
      reduction: "mean" over a sample's dimensions, or half their sum: a name in REDUCTIONS. It
        scales the loss, and with it what gradient clipping does.
      t_min: the smallest time trained on; 1e-5 in Song et al.

    Raises:
      ValueError: for an unknown name or t_min outside (0, 1).
    """

    weight: str = "sigma2"
    times: str = "uniform"
    levels: int = 1000
    reduction: str = "mean"
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        times = {**TIME_SAMPLERS, LEVELS: None, LOG_SNR: None}
        tables = (("weight", WEIGHTS), ("times", times), ("reduction", REDUCTIONS))
        for field, table in tables:
            value = getattr(self, field)
            if value not in table:
                raise ValueError(
                    f"{field}={value!r} is unknown; choose one of: {', '.join(sorted(table))}"
                )
        if self.levels < 2:
            raise ValueError(f"levels={self.levels} must be at least 2")
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min={self.t_min} must lie between 0 and 1")

    def __call__(
        self, key: Key[Array, ""], denoiser: Denoiser, x0: Float[Array, "batch ..."]
    ) -> Float[Array, "batch"]:
        """The loss of each sample, at one random time and noise each; their mean is the loss."""
        time_key, noise_key = jax.random.split(key)
        sde = denoiser.sde
        t = self.draw_times(time_key, x0.shape[0], sde).astype(x0.dtype)
        eps = jax.random.normal(noise_key, x0.shape, x0.dtype)
        error = denoiser.predict(sde.perturb(x0, t, eps), t).eps - eps
        weight = WEIGHTS[self.weight](sde, t) * REDUCTIONS[self.reduction](x0[0].size)
        if self.times == LOG_SNR:
            weight /= self._density(sde, t)
        return sum_per_sample(expand_like(weight, x0) * error**2)

    def draw_times(self, key: Key[Array, ""], batch: int, sde: SDE) -> Times:
        """The times (batch,) at which a batch is looked at."""
        if self.times == LEVELS:
            return jax.random.randint(key, (batch,), 0, self.levels) / (self.levels - 1)
        if self.times == LOG_SNR:
            low, high = self._log_snr_range(sde)
            t = sde.time_of_log_snr(low + (high - low) * _stratified(key, batch))
            return jnp.clip(t, self.t_min, 1.0)
        return self.t_min + (1 - self.t_min) * TIME_SAMPLERS[self.times](key, batch)

    def _density(self, sde: SDE, t: Times) -> Times:
        """Of times with uniform log-SNR, in units of the uniform density 1 / (1 - t_min)."""
        low, high = self._log_snr_range(sde)
        return (1 - self.t_min) * WEIGHTS["g2"](sde, t) / (high - low)

    def _log_snr_range(self, sde: SDE) -> Float[Array, "2"]:
        """The log-SNR at t = 1 and at t_min."""
        return sde.log_snr(jnp.array([1.0, self.t_min]))
