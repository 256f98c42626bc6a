r"""The waist: a Denoiser is the only door between networks and everything that uses them.

A network answers h = network(input_map(x_t), conditioning(t)). A parameterization says what h
means, as a map to the pair (x0, eps) tied by x_t = alpha x0 + sigma eps; the score is then
-eps / sigma (Vincent 2011; Song et al. 2021, arXiv:2011.13456). Samplers, losses and likelihoods
see `predict` and `score` only, and so never learn what the network was trained to output.

    parameterization   h is                            input map
    eps                eps                             x            DDPM; VP, sub-VP of Song et al.
    score              the score                       x
    x0                 x0                              x
    v                  alpha eps - sigma x0            x            Salimans & Ho, arXiv:2202.00512
    sigma_score        sigma times the score = -eps    2 x - 1      VE of Song et al.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float

from arrays import expand_like
from sde_lib import SDE, Time, reverse_drift

Batch = Float[Array, "batch ..."]
Network = Callable[[Batch, Float[Array, "batch"]], Batch]


class Prediction(NamedTuple):
    """What a network believes about x_t = alpha x0 + sigma eps."""

    x0: Batch
    eps: Batch


def _from_eps(x: Batch, alpha: Batch, sigma: Batch, eps: Batch) -> Prediction:
    return Prediction((x - sigma * eps) / alpha, eps)


def _from_x0(x: Batch, alpha: Batch, sigma: Batch, x0: Batch) -> Prediction:
    return Prediction(x0, (x - alpha * x0) / sigma)


def _from_v(x: Batch, alpha: Batch, sigma: Batch, v: Batch) -> Prediction:
    # Dividing by alpha^2 + sigma^2 makes the rotation exact for processes that are not VP too.
    norm = alpha**2 + sigma**2
    return Prediction((alpha * x - sigma * v) / norm, (sigma * x + alpha * v) / norm)


@dataclass(frozen=True, kw_only=True)
class Parameterization:
    """A meaning of the network's output, and the affine map scale x + shift of its input."""

    predict: Callable[[Batch, Batch, Batch, Batch], Prediction]
    scale: float = 1.0
    shift: float = 0.0


PARAMETERIZATIONS = {
    "eps": Parameterization(predict=_from_eps),
    "score": Parameterization(predict=lambda x, a, s, h: _from_eps(x, a, s, -s * h)),
    "x0": Parameterization(predict=_from_x0),
    "v": Parameterization(predict=_from_v),
    "sigma_score": Parameterization(
        predict=lambda x, a, s, h: _from_eps(x, a, s, -h), scale=2.0, shift=-1.0
    ),
}

# What the network is fed as the time, from t in [0, 1].
CONDITIONINGS: dict[str, Callable[[SDE, Time], Time]] = {
    "t": lambda sde, t: t,
    # The continuous VP networks of Song et al. keep DDPM's scale of labels, 0..999.
    "999t": lambda sde, t: 999.0 * t,
    "log_sigma": lambda sde, t: sde.log_sigma(t),
    "log_snr": lambda sde, t: sde.log_snr(t),
}


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["sde", "network"],
    meta_fields=["parameterization", "conditioning"],
)
@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A network that knows how to undo `sde` at every noise level.

    Args:
      sde: the process that made the noise.
      network: maps (input, condition) to an array shaped like the input; already closed over its
        parameters, best as `jax.tree_util.Partial(apply, params)`, so that a denoiser is a pytree
        and new parameters need no new compilation.
      parameterization: a name in PARAMETERIZATIONS.
      conditioning: a name in CONDITIONINGS.

    Raises:
      ValueError: for an unknown name.
    """

    sde: SDE
    network: Network
    parameterization: str = "eps"
    conditioning: str = "999t"

    def __post_init__(self) -> None:
        for field, table in (
            ("parameterization", PARAMETERIZATIONS),
            ("conditioning", CONDITIONINGS),
        ):
            value = getattr(self, field)
            if value not in table:
                raise ValueError(
                    f"{field}={value!r} is unknown; choose one of: {', '.join(sorted(table))}"
                )
        if callable(self.network) and not isinstance(self.network, Partial):
            object.__setattr__(self, "network", Partial(self.network))

    def predict(self, x: Batch, t: Time | float) -> Prediction:
        """The pair (x0, eps) that the network sees in x_t; t of shape () or (batch,)."""
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        meaning = PARAMETERIZATIONS[self.parameterization]
        condition = CONDITIONINGS[self.conditioning](self.sde, t)
        output = self.network(meaning.scale * x + meaning.shift, condition)
        alpha, sigma = expand_like(self.sde.alpha(t), x), expand_like(self.sde.sigma(t), x)
        return meaning.predict(x, alpha, sigma, output)

    def score(self, x: Batch, t: Time) -> Batch:
        """grad log p_t(x_t) = -eps / sigma."""
        return -self.predict(x, t).eps / expand_like(self.sde.sigma(t), x)

    def flow(self, x: Batch, t: Time) -> Batch:
        """Velocity dx/dt = f x - g^2 score / 2 of the probability-flow ODE."""
        return reverse_drift(self.sde, self.score(x, t), x, t, churn=0.0)
