r"""The Metropolis-adjusted Langevin algorithm (MALA), by the library blackjax.

A Langevin step proposes y = x + h score(x) + sqrt(2 h) z. It is accepted with the probability

    min(1, p(y) q(x | y) / (p(x) q(y | x))),    q(y | x) = N(y; x + h score(x), 2 h)

and otherwise x stays (Besag 1994; Roberts & Tweedie 1996). The chain then has the stationary law
p_t for any h, where that of plain Langevin steps depends on h. The ratio takes the log-density of
a network that is the gradient of an energy; its normalizing constant cancels.

Each sample accepts or rejects alone. So it does not depend on its batch.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from denoising import Denoiser
from errors import require_in
from numerics.arrays import Batch, fold_in_each
from sampling import Keys, Plan, Project, Scalar, Step
from sde_lib import SDE


def blackjax_kernel(field: str = "name") -> Any:
    """Return the module of blackjax's kernel; `field` of config.sampling chooses MALA.

    Raises:
        ValueError: if blackjax is not installed.
    """
    try:
        return importlib.import_module("blackjax.mcmc.mala")
    except ImportError as error:
        raise ValueError(
            f"{field}='mala' needs a package that is not installed; run: pip install blackjax, or "
            "choose langevin"
        ) from error


class Chain(NamedTuple):
    """The state of a chain per sample.

    Attributes:
        x, mean: the state, twice: no step adds noise that could be removed.
        log_density, gradient: of x.
        accepted: sum of the probabilities with which steps were accepted.
    """

    x: Batch
    mean: Batch
    log_density: Float[Array, "batch"]
    gradient: Batch
    accepted: Float[Array, "batch"]


@dataclass(frozen=True, kw_only=True)
class MALA:
    """MALA at the noise level of the grid's last time, one step per step of the grid.

    The first step has no density to compare with. It adds noise alone, and is accepted.

    Args:
        step_size: h in units of sigma(t)^2. About 57% of the steps are accepted at the best one in
            many dimensions (Roberts & Rosenthal 1998).

    Raises:
        ValueError: for a step size out of range, or without blackjax.
    """

    step_size: float = 0.5
    needs_energy = True
    takes_projection = False  # it would change x without the density that a step compares with
    evaluations = 1

    def __post_init__(self) -> None:
        require_in("step_size", self.step_size, "(0, inf)")
        blackjax_kernel("name")

    def plan(self, sde: SDE, times: np.ndarray) -> Plan:
        return Plan(self, np.full(len(times) - 1, times[-1]), np.full_like(times, times[-1]))

    def start(self, x: Batch) -> Chain:
        none = jnp.zeros(len(x), x.dtype)
        return Chain(x, x, none - jnp.inf, jnp.zeros_like(x), none)

    def step(
        self, keys: Keys, denoiser: Denoiser, state: Chain, step: Scalar, project: Project
    ) -> Chain:
        h = self.step_size * denoiser.sde.sigma(step) ** 2
        return _move(keys, denoiser, state, step, h)


@dataclass(frozen=True, kw_only=True)
class MALACorrector:
    """MALA as a corrector, with the step sizes of `AnnealedLangevin`.

    The step size is h = 2 scale^2 (snr sigma(t))^2.

    Args:
        snr: signal-to-noise ratio.
        corrector_steps: steps at each time.

    Raises:
        ValueError: for a number out of range, or without blackjax.
    """

    snr: float = 0.16
    corrector_steps: int = 1
    needs_energy = True

    def __post_init__(self) -> None:
        require_in("snr", self.snr, "(0, inf)")
        require_in("corrector_steps", self.corrector_steps, "[1, inf)")
        blackjax_kernel("corrector")

    @property
    def evaluations(self) -> int:
        return self.corrector_steps + 1  # the first is of the state that it finds

    def step(self, keys: Keys, denoiser: Denoiser, state: Step, t: Scalar, s: Scalar) -> Step:
        scale, _ = denoiser.sde.transition(s, t)
        h = 2 * (scale * self.snr * denoiser.sde.sigma(t)) ** 2
        log_density, gradient = _each(denoiser, t, _value_and_gradient)(state.x)
        none = jnp.zeros(len(state.x), state.x.dtype)
        chain = Chain(state.x, state.x, log_density, gradient, none)

        def take(number: Array, chain: Chain) -> Chain:
            return _move(fold_in_each(keys, number), denoiser, chain, t, h)

        chain = jax.lax.fori_loop(0, self.corrector_steps, take, chain)
        assert state.accepted is not None
        accepted = state.accepted + chain.accepted / self.corrector_steps
        return Step(chain.x, chain.x, accepted)


def _move(keys: Keys, denoiser: Denoiser, chain: Chain, t: Scalar, h: Scalar) -> Chain:
    """Take one step of blackjax's kernel; sample k draws its noise from `keys[k]` alone."""
    mala = blackjax_kernel()
    kernel = mala.build_kernel()

    def of_one(log_density: Callable[[Array], Array], key: Array, *state: Array) -> Any:
        return kernel(key, mala.MALAState(*state), log_density, h)

    state = chain.x, chain.log_density, chain.gradient
    moved, info = _each(denoiser, t, of_one)(keys, *state)
    return Chain(
        moved.position,
        moved.position,
        moved.logdensity,
        moved.logdensity_grad,
        chain.accepted + info.acceptance_rate,
    )


def _value_and_gradient(log_density: Callable[[Array], Array], x: Array) -> tuple[Array, Array]:
    return jax.value_and_grad(log_density)(x)


def _each(denoiser: Denoiser, t: Scalar, function: Callable[..., Any]) -> Callable[..., Any]:
    """Map `function` over the samples; its first argument is the log-density of a sample."""

    def of_one(entry: Any, *arguments: Array) -> Any:
        own = denoiser.index(entry)
        return function(lambda x: own.log_density(x[None], t)[0], *arguments)

    return lambda *arguments: jax.vmap(of_one)(denoiser.batched_fields, *arguments)
