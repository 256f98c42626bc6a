r"""Maximum likelihood for the energy of a network, at one noise level.

A network that is the gradient of an energy has a density at time t up to its normalizing constant,
p(x) = exp(f(x)) / Z. The gradient of its log-likelihood by the parameters needs no Z:

    d/dtheta E_data log p = E_data df/dtheta - E_p df/dtheta

(Hinton 2002). The second mean is over samples of the model. They are the ends of Langevin chains
that continue from one training step to the next, since the model changes little in a step (Tieleman
2008; Nijkamp et al. 2019, arXiv:1903.12370):

    x  <-  x + h grad f(x) + sqrt(2 h) z,    h = step_size sigma(t)^2

Some chains start anew from noise (Du & Mordatch 2019, arXiv:1903.08689), so that they find modes
that no chain has visited. The data are noised up to time t, which gives them a density.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from denoising import Denoiser
from errors import require_in
from numerics.arrays import Batch
from training.objective import Context, Losses, Objective


class Chains(NamedTuple):
    """The Langevin chains of a training run, which batches continue in turn.

    Attributes:
        x: their states.
        next: the chain with which the next batch begins.
        started: number of chains that have started; the others hold no state yet.
    """

    x: Float[Array, "chains ..."]
    next: Int[Array, ""]
    started: Int[Array, ""]


class Negatives(NamedTuple):
    """The noise of each row of a batch, and a sample of the model beside it."""

    eps: Batch
    x: Batch


@dataclass(frozen=True, kw_only=True)
class MaximumLikelihood(Objective):
    """Maximum likelihood with persistent Langevin chains; see the module docstring.

    The loss is the log-density of a sample of the model less that of a row of the data, in nats. It
    hovers around 0 and is no measure of success; the metric log_density is one.

    Args:
        row_shape: of a row of the data.
        t_min: the time whose density is learned, in (0, 1).
        chains: number of chains, at least the batch size.
        chain_steps: Langevin steps of a chain for each batch that takes it.
        chain_step_size: h in units of sigma(t)^2.
        restart: probability that a chain starts anew from N(0, I).
        penalty: weight of the squared log-densities, which keeps them near 0.

    Raises:
        ValueError: for a number out of range.
    """

    needs_energy: ClassVar[bool] = True
    samplers: ClassVar[tuple[str, ...]] = ("langevin", "mala")

    row_shape: tuple[int, ...]
    t_min: float = 0.03
    chains: int = 4096
    chain_steps: int = 20
    chain_step_size: float = 0.5
    restart: float = 0.0
    penalty: float = 0.0

    def __post_init__(self) -> None:
        require_in("t_min", self.t_min, "(0, 1)")
        require_in("chains", self.chains, "[1, inf)")
        require_in("chain_steps", self.chain_steps, "[1, inf)")
        require_in("chain_step_size", self.chain_step_size, "(0, 2)")
        require_in("restart", self.restart, "[0, 1]")
        require_in("penalty", self.penalty, "[0, inf)")

    def init_state(self) -> Chains:
        """Return chains of which none has started."""
        return Chains(jnp.zeros((self.chains, *self.row_shape)), jnp.int32(0), jnp.int32(0))

    def draw(self, key: Key[Array, ""], model: Denoiser, x0: Batch, context: Context) -> Negatives:
        """Draw the noise of the data, and continue a chain of the model per row.

        Without a state, as in an evaluation, all chains are new.
        """
        eps_key, start_key, restart_key, chain_key = jax.random.split(key, 4)
        x = jax.random.normal(start_key, x0.shape, x0.dtype)
        if context.state != ():
            index = self._indices(context.state, len(x0))
            renewed = jax.random.bernoulli(restart_key, self.restart, (len(x0),))
            renewed |= index >= context.state.started
            kept = context.state.x[index].astype(x0.dtype)
            x = jnp.where(renewed.reshape(-1, *(1,) * (x0.ndim - 1)), x, kept)
        model = jax.lax.stop_gradient(model)
        t = jnp.full(len(x0), self.t_min, x0.dtype)
        h = self.chain_step_size * model.sde.sigma(t[0]) ** 2

        def move(number: Int[Array, ""], x: Batch) -> Batch:
            noise = jax.random.normal(jax.random.fold_in(chain_key, number), x.shape, x.dtype)
            return x + h * model.score(x, t) + jnp.sqrt(2 * h) * noise

        x = jax.lax.fori_loop(0, self.chain_steps, move, x)
        # The network may hold parameters where the first `stop_gradient` does not see them.
        return Negatives(jax.random.normal(eps_key, x0.shape, x0.dtype), jax.lax.stop_gradient(x))

    def evaluate(
        self, key: Key[Array, ""], drawn: Negatives, model: Denoiser, x0: Batch, context: Context
    ) -> Float[Array, "batch"]:
        """Return the log-density of each sample of the model less that of a row of the data."""
        t = jnp.full(len(x0), self.t_min, x0.dtype)
        ours = model.log_density(drawn.x, t)
        data = model.log_density(model.sde.perturb(x0, t, drawn.eps), t)
        return ours - data + self.penalty * (ours**2 + data**2)

    def weighted(
        self, drawn: Negatives, losses: Float[Array, "batch"], model: Denoiser, context: Context
    ) -> Losses:
        """Return the losses, and the chains with their new states."""
        if context.state == ():  # an evaluation keeps none
            return Losses(losses, ())
        chains, count = context.state, len(drawn.x)
        x = chains.x.at[self._indices(chains, count)].set(drawn.x.astype(chains.x.dtype))
        started = jnp.minimum(chains.started + count, self.chains)
        return Losses(losses, Chains(x, (chains.next + count) % self.chains, started))

    def _indices(self, chains: Chains, count: int) -> Int[Array, "count"]:
        """Return the chains of a batch."""
        return (chains.next + jnp.arange(count)) % self.chains
