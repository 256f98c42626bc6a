r"""Paths and densities of diffusions dx = mu(x, t) dt + g(t) dw, where closed forms check them.

A Wiener process w has independent increments, w(t) - w(s) ~ N(0, (t - s) I). The density p of x
obeys the Fokker-Planck equation (Risken, The Fokker-Planck Equation, 1989, Sec. 1.2.3),

    dp/dt = -div(mu p) + g^2 / 2 laplacian p

With g = 0 it is the continuity equation of a flow, and with mu = 0 and g = 1 the heat equation. In
reverse time the sign of g^2 changes. The Ornstein-Uhlenbeck process dx = -theta x dt + g dw has
exact steps,

    x(t + h) = exp(-theta h) x(t) + g sqrt((1 - exp(-2 theta h)) / (2 theta)) z,   z ~ N(0, I)

Along Langevin dynamics dx = grad log p dt + sqrt(2) dw, the density q of x comes closer to p
(Vempala and Wibisono 2019, arXiv:1903.08568, Lemma 1):

    d/dt KL(q || p) = -E_q |grad log q - grad log p|^2
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from errors import require_in
from numerics.arrays import Batch, fold_in_each, normal_like

Scalar = Float[Array, ""]
Point = Float[Array, "dims"]
Keys = Key[Array, "batch"]
Times = Float[Array, "times"]
Paths = Float[Array, "times batch *shape"]
# log p(x, t), and a vector field; of one point.
LogDensity = Callable[[Point, Scalar], Scalar]
Field = Callable[[Point, Scalar], Point]
Line = Float[Array, "n"]


def simulate(
    keys: Keys,
    x: Batch,
    times: Times,
    *,
    drift: Callable[[Batch, Scalar], Batch],
    diffusion: Callable[[Scalar], Scalar],
) -> Paths:
    """Simulate paths from x by Euler-Maruyama steps, which start at the times in turn.

    Two starts with equal keys have the same Wiener process.

    Args:
        keys: path k depends on `keys[k]` alone.
        x: states at the first time, (batch, ...).
        times: increasing, or decreasing for a process in reverse time.
        drift: mu of the whole batch at a time.
        diffusion: g at a time.
    """

    def step(x: Batch, now: tuple[Array, Array, Array]) -> tuple[Batch, Batch]:
        number, t, h = now
        noise = normal_like(fold_in_each(keys, number), x)
        x = x + drift(x, t) * h + diffusion(t) * jnp.sqrt(jnp.abs(h)) * noise
        return x, x

    times = jnp.asarray(times, x.dtype)
    steps = jnp.arange(len(times) - 1), times[:-1], jnp.diff(times)
    return jnp.concatenate([x[None], jax.lax.scan(step, x, steps)[1]])


def wiener_paths(keys: Keys, times: Times, dims: int) -> Float[Array, "times batch dims"]:
    """Return Wiener processes at increasing times, which begin at 0 at the first of them."""

    def one(t: Scalar) -> Scalar:
        return jnp.ones_like(t)

    start = jnp.zeros((len(keys), dims))
    return simulate(keys, start, times, drift=lambda x, t: jnp.zeros_like(x), diffusion=one)


def ornstein_uhlenbeck_paths(
    keys: Keys, x: Batch, times: Times, *, theta: float, diffusion: float
) -> Paths:
    """Return paths of dx = -theta x dt + diffusion dw at increasing times, by exact steps.

    With equal keys, the paths of two starts come closer as exp(-theta t).

    Raises:
        ValueError: unless theta is positive.
    """
    require_in("theta", theta, "(0, inf)")

    def step(x: Batch, now: tuple[Array, Array]) -> tuple[Batch, Batch]:
        number, h = now
        std = diffusion * jnp.sqrt(-jnp.expm1(-2 * theta * h) / (2 * theta))
        x = jnp.exp(-theta * h) * x + std * normal_like(fold_in_each(keys, number), x)
        return x, x

    gaps = jnp.diff(jnp.asarray(times, x.dtype))
    return jnp.concatenate([x[None], jax.lax.scan(step, x, (jnp.arange(len(gaps)), gaps))[1]])


def fokker_planck(
    log_density: LogDensity,
    drift: Field,
    squared_diffusion: Callable[[Scalar], Scalar],
    x: Float[Array, "batch dims"],
    t: Scalar,
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """Return both sides of the Fokker-Planck equation at points and one time, by autodiff.

    Args:
        log_density: log p(x, t) of one point, in nats.
        drift: mu(x, t) of one point.
        squared_diffusion: g(t)^2; negative for a process in reverse time, 0 for a flow.
        x: the points.
        t: the time, ().
    """

    def density(x: Point, t: Scalar) -> Scalar:
        return jnp.exp(log_density(x, t))

    def sides(x: Point) -> tuple[Scalar, Scalar]:
        change = jax.grad(density, argnums=1)(x, t)
        transport = jnp.trace(jax.jacfwd(lambda x: drift(x, t) * density(x, t))(x))
        spread = jnp.trace(jax.hessian(density)(x, t))
        return change, 0.5 * squared_diffusion(t) * spread - transport

    return jax.vmap(sides)(x)


def transported(
    log_density: Callable[[Point], Scalar], inverse: Callable[[Point], Point]
) -> Callable[[Point], Scalar]:
    """Return the log-density after a map of the plane or space, of which the inverse is known.

    log p_0(inverse(x)) + log |det d inverse / dx|: the change of variables.
    """

    def after(x: Point) -> Scalar:
        _, log_det = jnp.linalg.slogdet(jax.jacfwd(inverse)(x))
        return log_density(inverse(x)) + log_det

    return after


def relative_entropy(
    log_q: Callable[[Scalar], Scalar], log_p: Callable[[Scalar], Scalar], x: Line
) -> Scalar:
    """Return KL(q || p) in nats on the line, by the trapezoidal rule at increasing points x."""
    at_q, at_p = jax.vmap(log_q)(x), jax.vmap(log_p)(x)
    return jnp.trapezoid(jnp.exp(at_q) * (at_q - at_p), x)


def fisher_divergence(
    log_q: Callable[[Scalar], Scalar], log_p: Callable[[Scalar], Scalar], x: Line
) -> Scalar:
    """Return E_q |grad log q - grad log p|^2 on the line, by the trapezoidal rule at points x."""
    difference = jax.vmap(jax.grad(log_q))(x) - jax.vmap(jax.grad(log_p))(x)
    return jnp.trapezoid(jnp.exp(jax.vmap(log_q)(x)) * difference**2, x)
