r"""Exact log-likelihoods by the probability-flow ODE.

Along the flow du/ds = v(u, s), in any of its variables s (flow.py), the log-density changes by the
divergence of v,

    log p(u(s_0)) = log p(u(s_1)) + int_{s_0}^{s_1} div v(u, s) ds

(Song et al. 2021, arXiv:2011.13456, Eq. 39), and x = scale u adds D log scale at both ends. The
divergence is the trace of v's Jacobian J, either exact (one directional derivative a dimension) or
estimated without bias by E[e^T J e] for probes e of unit covariance (Hutchinson 1990). Answers are
in nats; bits/dim need a quantizer: `metrics`.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from denoising import Denoiser
from numerics.arrays import sample_keys
from numerics.ode import ODEOptions, Solution, integrate, require_success
from numerics.traces import PROBES, exact_trace
from probability_flow import VARIABLES, check_variable

TRACES = (*PROBES, "exact")


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions:
    """How log-likelihoods are computed.

    Args:
      trace: a name in TRACES. "exact" costs one directional derivative a dimension.
      probes: random probes a sample, the same along its whole path; "exact" ignores it.
      t_min: where the path starts; the density is that of data noised to this time.
      variable: what is integrated in, a name in flow.VARIABLES.
    """

    trace: str = "rademacher"
    probes: int = 1
    t_min: float = 1e-5
    variable: str = "sqrt_angle"

    def __post_init__(self) -> None:
        if self.trace not in TRACES:
            raise ValueError(
                f"trace={self.trace!r} is unknown; choose one of: {', '.join(sorted(TRACES))}"
            )
        if self.probes < 1:
            raise ValueError(f"probes={self.probes} must be at least 1")
        if not 0 < self.t_min < 1:
            raise ValueError(f"t_min={self.t_min} must lie between 0 and 1")
        check_variable(self.variable)

    @property
    def estimates(self) -> int:
        """Estimates of each sample's log-density: one a probe; the exact trace is one."""
        return 1 if self.trace == "exact" else self.probes


class LogProb(NamedTuple):
    """Log-density of each sample in nats, its latent code x_1, and the network evaluations.

    `per_probe` holds what each probe alone would have answered, all along one path; `nats` is their
    mean. `nfe` counts each sample's evaluations; the batch waits for the slowest. Each comes with
    the directional derivatives of its trace.
    """

    nats: Float[Array, "batch"]
    per_probe: Float[Array, "batch probes"]
    latent: Float[Array, "batch ..."]
    nfe: Int[Array, "batch"]


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
    result, solution = _log_prob(key, denoiser, x, indices, options, ode)
    require_success(
        solution.success,
        "log-likelihood",
        ode,
        times=solution.reached,
        broken=solution.broken,
    )
    return result


@partial(jax.jit, static_argnames=("options",))
def _log_prob(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x: Float[Array, "batch *shape"],
    indices: Int[Array, "batch"],
    options: LikelihoodOptions,
    ode: ODEOptions,
) -> tuple[LogProb, Solution]:
    sde, (at, velocity) = denoiser.sde, VARIABLES[options.variable]
    exact, dims = options.trace == "exact", x[0].size
    probes = None
    if not exact:
        draw = partial(PROBES[options.trace], probes=options.probes)
        probes = jax.vmap(lambda key, x: draw(key, x=x))(sample_keys(key, indices), x)

    def field(value: Float[Array, ""], state: tuple, args: tuple) -> tuple:
        probes, entry = args
        one = denoiser.index(entry)
        # Forward and trace share one linearization. Forward mode keeps no tape, and on the CPU
        # stays clear of convolution gradients inside a loop, which are 10 to 60 times slower.
        v, jacobian = jax.linearize(lambda u: velocity(one, u[None], value)[0], state[0])
        if not exact:
            return v, jax.vmap(lambda e: jnp.sum(e * jacobian(e)))(probes)

        return v, exact_trace(lambda e: jacobian(e[0])[None], v[None])

    (first, last), scales = (
        [function(sde, jnp.asarray(t, x.dtype)) for t in (options.t_min, 1.0)]
        for function in (at.value, at.scale)
    )
    solution = integrate(
        field,
        (x / scales[0], jnp.zeros((x.shape[0], options.estimates), x.dtype)),
        (probes, denoiser.batched_fields),
        t0=first,
        t1=last,
        options=ode,
    )
    u, change = solution.y
    latent = u * scales[1]
    density = sde.prior_log_prob(latent) + dims * jnp.log(scales[1] / scales[0])
    per_probe = density[:, None] + change
    result = LogProb(per_probe.mean(axis=1), per_probe, latent, solution.evaluations)
    return result, solution._replace(y=None, reached=at.time(sde, solution.reached))
