r"""The waist: a Denoiser is the only door between networks and everything that uses them.

A network answers h = network(input_map(x_t), conditioning(t)). A parameterization says what h
means, as a map to the pair (x0, eps) tied by x_t = alpha x0 + sigma eps; the score is then
-eps / sigma (Vincent 2011; Song et al. 2021, arXiv:2011.13456). Samplers, losses and likelihoods
see `predict` and `score` only, and so never learn what the network was trained to output.

    parameterization   h is                            input map
    eps                eps                             x            DDPM; VP, sub-VP of Song et al.
    eps_learned_variance       eps, and a variance's channels  x            improved DDPM, ADM
    score              the score                       x
    x0                 x0                              x
    v                  alpha eps - sigma x0            x            Salimans & Ho, arXiv:2202.00512
    velocity           eps - x0                        x            rectified flow, arXiv:2209.03003
    scaled_score        sigma times the score = -eps    2 x - 1      VE of Song et al., NCSNv2
    score_centered_input      the score                       2 x - 1      NCSN
    edm                (x0 - c_skip y) / c_out         c_in y       Karras et al., arXiv:2206.00364

For edm, y = x / alpha has noise s = sigma / alpha, and with the data's sigma_d = 0.5,
c_skip = sigma_d^2 / (s^2 + sigma_d^2), c_out = s sigma_d c_in, c_in = 1 / sqrt(s^2 + sigma_d^2).
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int, Key

from numerics.arrays import expand_like, pytree
from sde_lib import SDE, Time, reverse_drift

Batch = Float[Array, "batch ..."]
Coefficient = Float[Array, "..."]
Network = Callable[..., Batch]  # (input, condition), then labels if the denoiser has any


class Prediction(NamedTuple):
    """What a network believes about x_t = alpha x0 + sigma eps.

    variance, of a network that answers one, tells how far the logarithm of a reverse step's
    variance is from the smallest (0) to the largest (1): Nichol & Dhariwal 2021, Eq. 15.

    gradient is what guidances have added to the score, of which x0 and eps know already.
    """

    x0: Batch
    eps: Batch
    variance: Batch | None = None
    gradient: Batch | None = None


def _from_eps(x: Batch, alpha: Batch, sigma: Batch, eps: Batch) -> Prediction:
    return Prediction((x - sigma * eps) / alpha, eps)


def _from_eps_learned_variance(x: Batch, alpha: Batch, sigma: Batch, h: Batch) -> Prediction:
    eps, fraction = jnp.split(h, 2, axis=-1)
    return _from_eps(x, alpha, sigma, eps)._replace(variance=(fraction + 1) / 2)


def _from_x0(x: Batch, alpha: Batch, sigma: Batch, x0: Batch) -> Prediction:
    return Prediction(x0, (x - alpha * x0) / sigma)


def _from_v(x: Batch, alpha: Batch, sigma: Batch, v: Batch) -> Prediction:
    # Dividing by alpha^2 + sigma^2 makes the rotation exact for processes that are not VP too.
    norm = alpha**2 + sigma**2
    return Prediction((alpha * x - sigma * v) / norm, (sigma * x + alpha * v) / norm)


def _from_velocity(x: Batch, alpha: Batch, sigma: Batch, h: Batch) -> Prediction:
    # alpha + sigma is 1 on the linear path, and never 0.
    return Prediction((x - sigma * h) / (alpha + sigma), (x + alpha * h) / (alpha + sigma))


EDM_DATA_STD = 0.5  # sigma_d, the standard deviation of images in [-1, 1]


def _from_edm(x: Batch, alpha: Batch, sigma: Batch, h: Batch) -> Prediction:
    y, s = x / alpha, sigma / alpha
    gain = _edm_gain(s)
    x0 = (EDM_DATA_STD * gain) ** 2 * y + s * EDM_DATA_STD * gain * h
    # (y - x0) / s without its cancellation at small s.
    return Prediction(x0, s * gain**2 * y - EDM_DATA_STD * gain * h)


def _edm_gain(s: Batch) -> Batch:
    """c_in, which gives y unit variance."""
    return jax.lax.rsqrt(s**2 + EDM_DATA_STD**2)


@dataclass(frozen=True, kw_only=True)
class Parameterization:
    """A meaning of the network's output, and the map (x, alpha, sigma) -> input of the network.

    The output has `channels` times the channels of x.
    """

    predict: Callable[[Batch, Batch, Batch, Batch], Prediction]
    channels: int = 1
    input: Callable[[Batch, Batch, Batch], Batch] = lambda x, alpha, sigma: x


def _centre(x: Batch, alpha: Batch, sigma: Batch) -> Batch:
    """From the range [0, 1] of the data to [-1, 1]."""
    return 2 * x - 1


PARAMETERIZATIONS = {
    "eps": Parameterization(predict=_from_eps),
    "eps_learned_variance": Parameterization(predict=_from_eps_learned_variance, channels=2),
    "score": Parameterization(predict=lambda x, a, s, h: _from_eps(x, a, s, -s * h)),
    "x0": Parameterization(predict=_from_x0),
    "v": Parameterization(predict=_from_v),
    "velocity": Parameterization(predict=_from_velocity),
    "scaled_score": Parameterization(
        predict=lambda x, a, s, h: _from_eps(x, a, s, -h), input=_centre
    ),
    "score_centered_input": Parameterization(
        predict=lambda x, a, s, h: _from_eps(x, a, s, -s * h), input=_centre
    ),
    "edm": Parameterization(predict=_from_edm, input=lambda x, a, s: _edm_gain(s / a) * x / a),
}

# What the network is fed as the time, from t in [0, 1] and the number of its training levels.
CONDITIONINGS: dict[str, Callable[[SDE, Time, int], Time]] = {
    "t": lambda sde, t, n: t,
    # The continuous VP networks of Song et al. keep DDPM's scale of labels, 0..999.
    "timestep_999": lambda sde, t, n: 999.0 * t,
    # A chain of any length counts its levels, or scales them to 0 .. 1000 (improved DDPM).
    "timestep": lambda sde, t, n: (n - 1) * t,
    "rescaled_timestep": lambda sde, t, n: 1000 * (n - 1) / n * t,
    # SMLD counts its levels from the largest sigma down.
    "reversed_timestep": lambda sde, t, n: jnp.round((1 - t) * (n - 1)),
    "log_sigma": lambda sde, t, n: sde.log_sigma(t),
    "log_snr": lambda sde, t, n: sde.log_snr(t),
    # EDM's log(sigma / alpha) / 4.
    "edm": lambda sde, t, n: -sde.log_snr(t) / 8,
}


CLIPS = ("none", "range", "dynamic")


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """Keeps the predicted x0 in the range of data, for samplers that leave it.

    Args:
      clip: "none"; "range" cuts x0 to [low, high] (Ho et al. 2020); "dynamic" cuts each sample's x0
        to its own `quantile` of the distance from the middle of the range, where that is beyond
        the range, and shrinks it back into it (Saharia et al. 2022, arXiv:2205.11487, Section 2.3).
      quantile: in (0, 1), by default 0.995; of dynamic clipping alone.
      low, high: the range of the data.

    Raises:
      ValueError: for an unknown name or a quantile that is out of range or without use.
    """

    clip: str = "none"
    quantile: float | None = None
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        if self.clip not in CLIPS:
            raise ValueError(f"clip={self.clip!r} is unknown; choose one of: {', '.join(CLIPS)}")
        if self.quantile is not None and (self.clip != "dynamic" or not 0 < self.quantile < 1):
            raise ValueError(
                f"quantile={self.quantile} is a number in (0, 1), and of clip='dynamic' alone"
            )

    def apply(self, x0: Batch) -> Batch:
        """x0 of shape (batch, ...) within the range, if clip is not "none"."""
        if self.clip == "range":
            return jnp.clip(x0, self.low, self.high)
        middle, radius = (self.low + self.high) / 2, (self.high - self.low) / 2
        centred = (x0 - middle) / radius
        quantile = 0.995 if self.quantile is None else self.quantile
        size = jnp.quantile(jnp.abs(centred).reshape(len(x0), -1), quantile, axis=-1)
        size = expand_like(jnp.maximum(size, 1), x0)
        return middle + radius * jnp.clip(centred, -size, size) / size


@runtime_checkable
class Guidance(Protocol):
    """What makes a denoiser answer a conditional question; a pytree, its arrays traced.

    `batched_fields` names its fields that are arrays, or trees of arrays, with an entry for each
    image of the batch; `evaluations` counts the network's evaluations in one prediction.
    """

    batched_fields: tuple[str, ...]

    @property
    def evaluations(self) -> int: ...

    def __call__(self, denoiser: "Denoiser", x: Batch, t: Time) -> Prediction:
        """What `denoiser`, which is without this guidance, predicts with it."""


@runtime_checkable
class Projection(Protocol):
    """Holds samples to what is known of them, between the steps of a sampler; a pytree."""

    def project(self, keys: Key[Array, "batch"], sde: SDE, x: Batch, t: Time) -> Batch:
        """x_t in agreement with what is known; row k draws its noise from `keys[k]` alone."""

    def finish(self, x0: Batch) -> Batch:
        """The sampler's last answer in agreement with what is known."""


@pytree(static=("parameterization", "conditioning", "num_timesteps", "clipping"))
@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A network that knows how to undo `sde` at every noise level.

    Args:
      sde: the process that made the noise.
      network: maps (input, condition), and labels if there are any, to an array shaped like the
        input; already closed over its parameters, best as `jax.tree_util.Partial(apply, params)`,
        so that a denoiser is a pytree and new parameters need no new compilation.
      labels: the class of each image of the batch, for a class-conditional network.
      parameterization: a name in PARAMETERIZATIONS.
      conditioning: a name in CONDITIONINGS.
      num_timesteps: number of noise levels that the conditionings with an index count.
      clipping: what is done to the predicted x0; eps and the score follow it. Guidances see it
        clipped, and clip what they make of it where their kind asks for that.
      guidances: what changes its predictions, the last one last.
      projection: what the samplers with fixed steps hold their states to; predictions know
        nothing of it.

    Raises:
      ValueError: for an unknown name.
    """

    sde: SDE
    network: Network
    labels: Int[Array, "batch"] | None = None
    parameterization: str = "eps"
    conditioning: str = "timestep_999"
    num_timesteps: int = 1000
    clipping: Clipping = Clipping()
    guidances: tuple[Guidance, ...] = ()
    projection: Projection | None = None

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
        if self.num_timesteps < 2:
            raise ValueError(f"num_timesteps={self.num_timesteps} must be at least 2")
        if callable(self.network) and not isinstance(self.network, Partial):
            object.__setattr__(self, "network", Partial(self.network))

    @property
    def evaluations(self) -> int:
        """Network evaluations of one prediction, at most."""
        return math.prod(guidance.evaluations for guidance in self.guidances)

    @property
    def per_image(self) -> Any:
        """A tree of all that has an entry for each image of the batch; `of_one` takes an entry."""
        guided = [{name: getattr(g, name) for name in g.batched_fields} for g in self.guidances]
        return self.labels, guided

    def of_one(self, entry: Any) -> "Denoiser":
        """This denoiser for a batch of one image, the one with that entry of `batched_fields`."""
        labels, guided = jax.tree.map(lambda array: array[None], entry)
        guidances = tuple(
            dataclasses.replace(guidance, **fields)
            for guidance, fields in zip(self.guidances, guided, strict=True)
        )
        return dataclasses.replace(self, labels=labels, guidances=guidances)

    def predict(self, x: Batch, t: Time | float) -> Prediction:
        """The pair (x0, eps) that the network sees in x_t; t of shape () or (batch,)."""
        if self.guidances:
            *others, last = self.guidances
            t = jnp.asarray(t, x.dtype)
            return last(dataclasses.replace(self, guidances=tuple(others)), x, t)
        return self.clipped(self._meaning(x, t), x, t)

    def _meaning(self, x: Batch, t: Time | float) -> Prediction:
        """Of the network's output."""
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        meaning = PARAMETERIZATIONS[self.parameterization]
        condition = CONDITIONINGS[self.conditioning](self.sde, t, self.num_timesteps)
        alpha, sigma = self.coefficients(x, t)
        labels = () if self.labels is None else (self.labels,)
        output = self.network(meaning.input(x, alpha, sigma), condition, *labels)
        expected = (*x.shape[:-1], meaning.channels * x.shape[-1])
        if output.shape != expected:
            raise ValueError(
                f"parameterization={self.parameterization!r} means an output of shape {expected}, "
                f"but the network answers {output.shape}; eps_learned_variance is for a network "
                "with learned_variance, and for no other"
            )
        return meaning.predict(x, alpha, sigma, output)

    def clipped(self, prediction: Prediction, x: Batch, t: Time | float) -> Prediction:
        """The prediction of x_t with its x0 clipped; eps follows it."""
        if self.clipping.clip == "none":
            return prediction
        x0 = self.clipping.apply(prediction.x0)
        # x = alpha x0 + sigma eps still; where nothing is clipped, eps stays what it was.
        alpha, sigma = self.coefficients(x, t)
        eps = prediction.eps + alpha / sigma * (prediction.x0 - x0)
        return prediction._replace(x0=x0, eps=eps)

    def guided(
        self, prediction: Prediction, gradient: Batch, x: Batch, t: Time | float
    ) -> Prediction:
        """The prediction of x_t whose score is greater by `gradient`."""
        alpha, sigma = self.coefficients(x, t)
        before = 0.0 if prediction.gradient is None else prediction.gradient
        return prediction._replace(
            x0=prediction.x0 + sigma**2 / alpha * gradient,
            eps=prediction.eps - sigma * gradient,
            gradient=before + gradient,
        )

    def coefficients(self, x: Batch, t: Time | float) -> tuple[Coefficient, Coefficient]:
        """alpha(t) and sigma(t) in shapes that broadcast against x."""
        t = jnp.asarray(t, x.dtype)
        return expand_like(self.sde.alpha(t), x), expand_like(self.sde.sigma(t), x)

    def score(self, x: Batch, t: Time) -> Batch:
        """grad log p_t(x_t) = -eps / sigma."""
        return -self.predict(x, t).eps / expand_like(self.sde.sigma(t), x)

    def flow(self, x: Batch, t: Time) -> Batch:
        """Velocity dx/dt = f x - g^2 score / 2 of the probability-flow ODE."""
        return reverse_drift(self.sde, self.score(x, t), x, t, churn=0.0)
