r"""Exact log-likelihoods by the probability-flow ODE.

Along dx/dt = f x - g^2 score / 2 =: v(x, t) the log-density changes by the divergence of v,

    log p(x_0) = log p_T(x_T) + int_0^T div v(x_t, t) dt

(Song et al. 2021, arXiv:2011.13456, Eq. 39). The divergence is the trace of v's Jacobian J, either
exact (one directional derivative a dimension) or estimated without bias by E[e^T J e] for probes e
of unit covariance (Hutchinson 1990). Answers are in nats; bits/dim need a quantizer: `metrics`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from arrays import sample_keys
from denoising import Denoiser
from ode import ODEOptions, integrate, require_success


def _rademacher(key: Key[Array, ""], probes: int, x: Float[Array, "*shape"]) -> Array:
    return jax.random.rademacher(key, (probes, *x.shape), x.dtype)


def _gaussian(key: Key[Array, ""], probes: int, x: Float[Array, "*shape"]) -> Array:
    return jax.random.normal(key, (probes, *x.shape), x.dtype)


def _basis(key: Key[Array, ""], probes: int, x: Float[Array, "*shape"]) -> Array:
    return jnp.eye(x.size, dtype=x.dtype).reshape(x.size, *x.shape)


# The directions e along which e^T J e is taken: random with unit covariance, or all of a basis.
TRACES: dict[str, Callable[..., Array]] = {
    "rademacher": _rademacher,
    "gaussian": _gaussian,
    "exact": _basis,
}


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions:
    """How log-likelihoods are computed.

    Args:
      trace: a name in TRACES. "exact" costs one directional derivative a dimension.
      probes: random probes a sample, the same along its whole path; "exact" ignores it.
      t_min: where the path starts; the density is that of data noised to this time.
    """

    trace: str = "rademacher"
    probes: int = 1
    t_min: float = 1e-5

    def __post_init__(self) -> None:
        if self.trace not in TRACES:
            raise ValueError(
                f"trace={self.trace!r} is unknown; choose one of: {', '.join(sorted(TRACES))}"
            )
        if self.probes < 1:
            raise ValueError(f"probes={self.probes} must be at least 1")
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min={self.t_min} must lie between 0 and 1")


class LogProb(NamedTuple):
    """Log-density of each sample in nats, its latent code x_T, and the network evaluations.

    `nfe` counts what the whole batch really costs: the slowest sample's evaluations. Each comes
    with the directional derivatives of its trace.
    """

    nats: Float[Array, "batch"]
    latent: Float[Array, "batch ..."]
    nfe: int


def log_prob(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x: Float[Array, "batch *shape"],
    *,
    options: LikelihoodOptions,
    ode: ODEOptions,
    indices: Int[Array, "batch"] | None = None,
) -> LogProb:
    """log p(x) in nats; sample k's probes depend on `key` and `indices[k]` (default k) alone.

    Raises:
      IntegrationError: if a sample's solve fails.
    """
    if indices is None:
        indices = jnp.arange(x.shape[0])
    nats, latent, evaluations, success = _log_prob(key, denoiser, x, indices, options, ode)
    require_success(success, "log-likelihood", ode)
    return LogProb(nats, latent, int(evaluations.max()))


@partial(jax.jit, static_argnames=("options", "ode"))
def _log_prob(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x: Float[Array, "batch *shape"],
    indices: Int[Array, "batch"],
    options: LikelihoodOptions,
    ode: ODEOptions,
) -> tuple[Float[Array, "batch"], Array, Int[Array, "batch"], Bool[Array, "batch"]]:
    draw = TRACES[options.trace]
    keys = sample_keys(key, indices)
    probes = jax.vmap(lambda key, x: draw(key, options.probes, x))(keys, x)

    def field(t: Float[Array, ""], state: tuple, args: tuple) -> tuple:
        probes, label = args
        one = denoiser.of_one(label)
        # Forward and trace share one linearization. Forward mode keeps no tape, and on the CPU
        # stays clear of convolution gradients inside a loop, which are 10 to 60 times slower.
        v, jacobian = jax.linearize(lambda x: one.flow(x[None], t)[0], state[0])
        traces = jax.vmap(lambda e: jnp.sum(e * jacobian(e)))(probes)
        divergence = jnp.sum(traces) if options.trace == "exact" else jnp.mean(traces)
        return v, divergence

    solution = integrate(
        field,
        (x, jnp.zeros(x.shape[0], x.dtype)),
        (probes, denoiser.labels),
        t0=options.t_min,
        t1=1.0,
        options=ode,
    )
    latent, change = solution.y
    nats = denoiser.sde.prior_log_prob(latent) + change
    return nats, latent, solution.evaluations, solution.success
