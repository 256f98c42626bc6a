r"""Exact log-likelihoods by the probability-flow ODE.

Along the curve du/ds = v(u, s), in one of the variables s of `probability_flow`, the divergence of
v changes the log-density,

    log p(u(s_0)) = log p(u(s_1)) + int_{s_0}^{s_1} div v(u, s) ds

(Song et al. 2021, arXiv:2011.13456, Eq. 39). The state x = scale u adds D log scale at both ends.
The divergence is the trace of v's Jacobian J. It is either exact, with one directional derivative
per dimension, or estimated without bias by E[e^T J e] for probes e of unit covariance (Hutchinson
1990). The log-density is in nats; `metrics.bits_per_dim` converts it with a quantizer.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from denoising import Denoiser
from errors import require_choice, require_in
from numerics.arrays import Batch, require_batch, sample_indices, sample_keys
from numerics.ode import ODEOptions, Solution, integrate, require_success
from numerics.traces import PROBES, exact_trace
from probability_flow import VARIABLES

TRACES = (*PROBES, "exact")


@dataclass(frozen=True, kw_only=True)
class LikelihoodOptions:
    """Options of the log-likelihood.

    Args:
        trace: a name in TRACES. "exact" costs one directional derivative per dimension.
        probes: number of random probes per sample, at least 1, fixed along its path; "exact" has
            none.
        t_min: start of the path, in (0, 1). The density is that of x_t at this time.
        ode_variable: variable of integration, a name in `probability_flow.VARIABLES`.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    trace: str = "rademacher"
    probes: int = 1
    t_min: float = 1e-5
    ode_variable: str = "sqrt_angle"

    def __post_init__(self) -> None:
        require_choice("trace", self.trace, TRACES)
        require_in("probes", self.probes, "[1, inf)")
        require_in("t_min", self.t_min, "(0, 1)")
        require_choice("ode_variable", self.ode_variable, VARIABLES)

    @property
    def estimates(self) -> int:
        """Number of estimates of a sample's log-density: one per probe, 1 for the exact trace."""
        return 1 if self.trace == "exact" else self.probes


class LogProb(NamedTuple):
    """Log-densities, latents and costs of a batch.

    Attributes:
        nats: log-density of each sample in nats, the mean of `per_probe`.
        per_probe: the estimates (batch, probes) of the single probes, all along the same path; one
            for the exact trace.
        latent: x_1 (batch, ...), where each sample's path ends.
        nfe: network evaluations of each sample, each with the directional derivatives of its trace.
            The batch takes as long as its slowest sample.
    """

    nats: Float[Array, "batch"]
    per_probe: Float[Array, "batch probes"]
    latent: Batch
    nfe: Int[Array, "batch"]


def log_prob(
    key: Key[Array, ""],
    denoiser: Denoiser,
    x: Float[Array, "batch *shape"],
    *,
    options: LikelihoodOptions = LikelihoodOptions(),
    ode: ODEOptions = ODEOptions(solver="adams"),
    indices: Int[Array, "batch"] | None = None,
) -> LogProb:
    """Return log p(x) in nats, by the probability-flow ODE; inside jit, what fails is NaN.

    Args:
        key: the probes of sample k depend on `key` and `indices[k]` (default k) alone.
        denoiser: the network.
        x: finite floats (batch, ...) in the network's range, such as those of
            `TrainedModel.from_data`. The density is that of x as the state at `options.t_min`.
        options: trace, probes, end and variable.
        ode: method, tolerances and limits.
        indices: indices of the samples.

    Raises:
        TypeError: if `key` is no random key, or x holds no floats.
        ValueError: if x is no batch (batch, ...) of at least one, or holds NaN or infinity; for
            other than one index per sample; and for a network that has no scores.
        IntegrationError: if the solver fails for a sample.
    """
    x = require_batch(x)
    denoiser.require_mean("a likelihood")
    indices = sample_indices(key, x.shape, indices)
    result, solution = _log_prob(key, denoiser, x, indices, options, ode)
    require_success(solution, "log-likelihood", ode)
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
    sde, (at, velocity) = denoiser.sde, VARIABLES[options.ode_variable]
    exact, dims = options.trace == "exact", x[0].size
    probes = None
    if not exact:
        draw = partial(PROBES[options.trace], probes=options.probes)
        probes = jax.vmap(lambda key, x: draw(key, x=x))(sample_keys(key, indices), x)

    def field(value: Float[Array, ""], state: tuple, args: tuple) -> tuple:
        probes, entry = args
        one = denoiser.index(entry)
        # The value and the trace share one linearization. Forward mode keeps no tape, and on the
        # CPU avoids convolution gradients inside a loop, which are 10 to 60 times slower.
        v, jacobian = jax.linearize(lambda u: velocity(one, u[None], value)[0], state[0])
        if exact:
            return v, exact_trace(lambda e: jacobian(e[0])[None], v[None])
        return v, jax.vmap(lambda e: jnp.sum(e * jacobian(e)))(probes)

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
    return result, solution._replace(y=None, t_stopped=at.time(sde, solution.t_stopped))
