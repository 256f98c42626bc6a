r"""Mean matching: the reverse of a simulated chain, by regression on its own steps.

Iterative proportional fitting of the diffusion Schroedinger bridge (De Bortoli et al. 2021,
arXiv:2106.01357, Section 3). From data, a chain takes the steps x_(k+1) = F_k(x_k) + std_k z, along
times t_0 = 0 .. t_n = 1, with the variance std_k^2 = g^2 (t_(k+1) - t_k) of a Brownian motion. Its
reverse is nearly B(x_(k+1)) + std_k z. Where steps are small,

    B(x) = 2 x - F_k(x) + std_k^2 grad log p_(k+1)(x)
         = x + E[F_k(x_k) - F_k(x) | x_(k+1) = x]

since grad log p_(k+1) is the mean of (F_k(x_k) - x_(k+1)) / std_k^2. So B is found by regression of
x_(k+1) + F_k(x_k) - F_k(x_(k+1)) on x_(k+1) (their Proposition 3, Eq. 12). F is the teacher, the
network of the other direction, whose own x1 are these data. Without a teacher F_k(x) = x, the
reference process, with which the procedure starts. Then both networks take turns.

A step of a network is that of `solvers.bridge` with the large variance,

    B(x_t) = r x_t + (alpha_s - r alpha_t) x0,    r = sigma_s / sigma_t

so each target is one of x0, as for any other network. With the weights 1 / t^2 of x0's error, the
loss is an integral of the drift's squared error. Each step has its own minimum, which no weight
changes.
"""

from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key

from denoising import Denoiser
from errors import require_in
from numerics.arrays import Batch
from objectives.weights import Sigma2, Weight
from sde_lib import SDE, Time
from training.objective import Context, Objective


def chain_times(num_timesteps: int) -> Float[np.ndarray, "times"]:
    """Return t_0 = 0 .. t_n = 1, with steps that grow linearly to the middle, then shrink again.

    The times are their own mirror image, so that both directions share them.
    """
    u = np.arange(num_timesteps + 1) / num_timesteps
    return np.where(u < 0.5, 2 * u**2, 1 - 2 * (1 - u) ** 2)


class Steps(NamedTuple):
    """The steps of simulated chains, seen in reverse.

    Attributes:
        t: the times t_1 .. t_n (steps,).
        x: the states there (steps, batch, ...).
        x0: the targets, with which a step from x to the time before ends at B (steps, batch, ...).
    """

    t: Time
    x: Float[Array, "steps batch ..."]
    x0: Float[Array, "steps batch ..."]


def simulate_steps(
    sde: SDE, teacher: Denoiser | None, start: Batch, z: Float[Array, "batch steps ..."]
) -> Steps:
    """Simulate chains of the teacher, or of the reference process, and return their steps.

    Args:
        sde: the process of both directions, with its diffusion.
        teacher: the network of the other direction; None for the reference process.
        start: the data where chains start.
        z: standard normal noise of each step.
    """
    times = jnp.asarray(chain_times(z.shape[1]), start.dtype)
    stds = sde.diffusion * jnp.sqrt(jnp.diff(times))

    def mean(x: Batch, t: Time, s: Time) -> Batch:
        if teacher is None:
            return x
        ratio, of_x0 = _weights(sde, t, s)
        return ratio * x + of_x0 * teacher.predict(x, t).x0

    def step(x: Batch, given: tuple) -> tuple[Batch, tuple[Batch, Batch]]:
        t, s, std, noise = given
        ahead = mean(x, t, s)
        new = ahead + std * noise
        return new, (new, new + ahead - mean(new, t, s))

    theirs = times[::-1]  # the teacher's time is 1 at these data
    given = (theirs[:-1], theirs[1:], stds, jnp.moveaxis(z, 1, 0))
    _, (x, back) = jax.lax.scan(step, start, given)
    ratio, of_x0 = (
        weight.reshape((-1,) + (1,) * start.ndim) for weight in _weights(sde, times[1:], times[:-1])
    )
    return Steps(times[1:], x, jax.lax.stop_gradient((back - ratio * x) / of_x0))


def _weights(sde: SDE, t: Time, s: Time) -> tuple[Time, Time]:
    """Return the weights of x_t and of x0 in a step from t to s."""
    ratio = sde.sigma(s) / sde.sigma(t)
    return ratio, sde.alpha(s) - ratio * sde.alpha(t)


@dataclass(frozen=True, kw_only=True)
class MeanMatching(Objective):
    """The regression of the module docstring, on chains simulated anew for each batch.

    Args:
        teacher: RUN or RUN:STEP, the folder of the run in the other direction; "" for the
            reference process.
        num_timesteps: number of steps of a chain. All are trained at once, so that a batch of b
            rows is one of b num_timesteps states.
        weight: one of `objectives.weights`, for times that are uniform.

    Raises:
        ValueError: for a number out of range.
    """

    teacher: str = ""
    num_timesteps: int = 30
    weight: Weight = field(default_factory=Sigma2)

    takes_ends: ClassVar[bool] = True
    simulates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_in("num_timesteps", self.num_timesteps, "[2, 1000]")

    @property
    def first_time(self) -> float:
        """The first time after 0; before it, nothing is trained."""
        return float(chain_times(self.num_timesteps)[1])

    def draw(
        self, key: Key[Array, ""], model: Denoiser, x0: Batch, context: Context
    ) -> Float[Array, "batch steps ..."]:
        """Draw the noise of each chain's steps."""
        return jax.random.normal(key, (len(x0), self.num_timesteps, *x0.shape[1:]), x0.dtype)

    def evaluate(
        self,
        key: Key[Array, ""],
        drawn: Float[Array, "batch steps ..."],
        model: Denoiser,
        x0: Batch,
        context: Context,
    ) -> Float[Array, "batch"]:
        """Return the weighted squared error of x0 on the chain of each row, a mean over dims."""
        steps = simulate_steps(model.sde, context.teacher, x0, drawn)
        t = jnp.repeat(steps.t, len(x0))
        found = model.predict(steps.x.reshape(-1, *x0.shape[1:]), t).x0.reshape(steps.x.shape)
        axes = tuple(range(2, found.ndim))
        errors = jnp.mean((found - steps.x0) ** 2, axis=axes)
        lengths = jnp.diff(steps.t, prepend=0)
        weights = self.weight(model.sde, steps.t) * jnp.exp(model.sde.log_snr(steps.t)) * lengths
        return weights @ errors
