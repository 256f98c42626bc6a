r"""The Denoiser: the interface between networks and samplers, losses and likelihoods.

A network computes h = network(input_map(x_t), conditioning(t)). A parameterization defines how h
encodes the pair (x0, eps), tied by x_t = alpha x0 + sigma eps. The score is then -eps / sigma
(Vincent 2011; Song et al. 2021, arXiv:2011.13456). Samplers, losses and likelihoods call `predict`
and `score` only, whatever the network was trained to output.

    parameterization      h                              input map
    eps                   eps                            x          DDPM; VP, sub-VP of Song et al.
    eps_learned_variance  eps and a variance's channels  x          improved DDPM, ADM
    score                 the score                      x
    x0                    x0                             x
    v                     alpha eps - sigma x0           x          Salimans & Ho, arXiv:2202.00512
    velocity              eps - x0                       x          rectified flow, arXiv:2209.03003
    bridge                (x - x0) / sqrt(sigma)         x          I2SB, arXiv:2302.05872
    scaled_score          sigma times the score = -eps   2 x - 1    VE of Song et al., NCSNv2
    score_centered_input  the score                      2 x - 1    NCSN
    edm                   (x0 - c_skip y) / c_out        c_in y     Karras et al., arXiv:2206.00364
    iddpm                 eps and a variance's channels  x / size   the same, for ADM's network
    consistency           (x0 - c_skip y) / c_out        c_in y     Song et al., arXiv:2303.01469
    levels                log-odds of gray levels        x

For edm, y = x / alpha has noise s = sigma / alpha, and with the data's deviation sigma_d, 0.5,
c_skip = sigma_d^2 / (s^2 + sigma_d^2), c_out = s sigma_d c_in, c_in = 1 / sqrt(s^2 + sigma_d^2).
For consistency, x0 is not a mean. It is the end of the ODE's path from x_t, at the noise sigma_min.
With r = s - sigma_min, c_skip = sigma_d^2 / (r^2 + sigma_d^2) and c_out = r sigma_d c_in, so x0 = y
at that noise (their Appendix C).

For iddpm, size = sqrt(alpha^2 + sigma^2). It presents x_t of any process to a network of DDPM's
chain, for which the size is 1. The variance is that of a step of the chain, and is not used.

For levels, the network predicts the probabilities of each pixel's gray levels from what surrounds
it. Bayes' rule adds what the noisy pixel itself says, and x0 is the mean of the result. So pixels
whose noise is small become exact without being learned. Dieleman et al. 2022 (arXiv:2211.15089,
Section 3.1) take such means without the second step.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from errors import require_choice, require_in
from numerics.arrays import Batch, expand_like, pytree, sum_per_sample
from numerics.clipping import Clipping
from numerics.pixel_levels import PixelLevels
from sde_lib import BETAS, SDE, Time, reverse_drift

Coefficient = Float[Array, "..."]
# Of (input, condition), then of labels, and by name of `augment_labels` and `image`, where present.
Network = Callable[..., Batch]


class Prediction(NamedTuple):
    """The prediction of x0 and eps from x_t = alpha x0 + sigma eps.

    Args:
        x0: predicted data, shaped like x_t.
        eps: predicted noise, shaped like x_t.
        variance: for networks with a learned variance, the position of the logarithm of a reverse
            step's variance between the smallest (0) and the largest (1). Nichol & Dhariwal 2021,
            arXiv:2102.09672, Eq. 15.
        gradient: total guidance added to the score; x0 and eps already include it.
        uncertainty: E[(eps_t - eps)^2 | x_t] of the true noise eps_t, in a shape that broadcasts
            against eps; for denoisers with an `uncertainty`.
    """

    x0: Batch
    eps: Batch
    variance: Batch | None = None
    gradient: Batch | None = None
    uncertainty: Batch | None = None


def _from_eps(x: Batch, alpha: Batch, sigma: Batch, eps: Batch) -> Prediction:
    return Prediction((x - sigma * eps) / alpha, eps)


def _from_eps_learned_variance(x: Batch, alpha: Batch, sigma: Batch, h: Batch) -> Prediction:
    eps, fraction = jnp.split(h, 2, axis=-1)
    return _from_eps(x, alpha, sigma, eps)._replace(variance=(fraction + 1) / 2)


def _from_x0(x: Batch, alpha: Batch, sigma: Batch, x0: Batch) -> Prediction:
    return Prediction(x0, (x - alpha * x0) / sigma)


def _from_v(x: Batch, alpha: Batch, sigma: Batch, v: Batch) -> Prediction:
    # Dividing by alpha^2 + sigma^2 makes the rotation exact for all processes.
    norm = alpha**2 + sigma**2
    return Prediction((alpha * x - sigma * v) / norm, (sigma * x + alpha * v) / norm)


def _from_velocity(x: Batch, alpha: Batch, sigma: Batch, h: Batch) -> Prediction:
    return Prediction((x - sigma * h) / (alpha + sigma), (x + alpha * h) / (alpha + sigma))


def _from_bridge(x: Batch, alpha: Batch, sigma: Batch, h: Batch) -> Prediction:
    root = jnp.sqrt(sigma)
    return Prediction(x - root * h, (1 - alpha) / sigma * x + alpha / root * h)


def _from_edm(x: Batch, alpha: Batch, sigma: Batch, h: Batch, sigma_data: float) -> Prediction:
    y, s = x / alpha, sigma / alpha
    gain = _edm_gain(s, sigma_data)
    x0 = (sigma_data * gain) ** 2 * y + s * sigma_data * gain * h
    # (y - x0) / s without its cancellation at small s.
    return Prediction(x0, s * gain**2 * y - sigma_data * gain * h)


def _edm_input(x: Batch, alpha: Batch, sigma: Batch, sigma_data: float, *_: float) -> Batch:
    return _edm_gain(sigma / alpha, sigma_data) * x / alpha


def _from_consistency(
    x: Batch, alpha: Batch, sigma: Batch, h: Batch, sigma_data: float, sigma_min: float
) -> Prediction:
    y, s = x / alpha, sigma / alpha
    r = s - sigma_min
    c_skip = 1 / (1 + (r / sigma_data) ** 2)
    c_out = r * sigma_data * _edm_gain(s, sigma_data)
    # (y - x0) / s without its cancellation at small s.
    eps = ((r / sigma_data) ** 2 * c_skip * y - c_out * h) / s
    return Prediction(c_skip * y + c_out * h, eps)


def _from_levels(
    x: Batch, alpha: Batch, sigma: Batch, h: Batch, pixel_levels: PixelLevels
) -> Prediction:
    return _from_x0(x, alpha, sigma, pixel_levels.posterior_mean(h, x, alpha, sigma))


def _edm_gain(s: Batch, sigma_data: float) -> Batch:
    """Return c_in, which scales y to unit variance."""
    return jax.lax.rsqrt(s**2 + sigma_data**2)


@dataclass(frozen=True, kw_only=True)
class Parameterization:
    """How a network's output encodes (x0, eps), and how its input is made.

    Args:
        predict: the map (x, alpha, sigma, output) -> Prediction.
        channels: channels of the output per channel of x; with `pixel_levels`, one per level.
        input: the map (x, alpha, sigma) -> input of the network.
        uses: fields of the Denoiser, which are the last arguments of both maps.
        predicts_mean: whether the predicted x0 is the mean of x0 given x_t, as scores need.
    """

    predict: Callable[..., Prediction]
    channels: int = 1
    input: Callable[..., Batch] = lambda x, alpha, sigma: x
    uses: tuple[str, ...] = ()
    predicts_mean: bool = True


def _center(x: Batch, alpha: Batch, sigma: Batch) -> Batch:
    """Map the data's range [0, 1] to [-1, 1]."""
    return 2 * x - 1


PARAMETERIZATIONS = {
    "eps": Parameterization(predict=_from_eps),
    "eps_learned_variance": Parameterization(predict=_from_eps_learned_variance, channels=2),
    "score": Parameterization(predict=lambda x, a, s, h: _from_eps(x, a, s, -s * h)),
    "x0": Parameterization(predict=_from_x0),
    "v": Parameterization(predict=_from_v),
    "velocity": Parameterization(predict=_from_velocity),
    "bridge": Parameterization(predict=_from_bridge),
    "scaled_score": Parameterization(
        predict=lambda x, a, s, h: _from_eps(x, a, s, -h), input=_center
    ),
    "score_centered_input": Parameterization(
        predict=lambda x, a, s, h: _from_eps(x, a, s, -s * h), input=_center
    ),
    "edm": Parameterization(predict=_from_edm, input=_edm_input, uses=("sigma_data",)),
    "consistency": Parameterization(
        predict=_from_consistency,
        input=_edm_input,
        uses=("sigma_data", "sigma_min"),
        predicts_mean=False,
    ),
    "iddpm": Parameterization(
        predict=lambda x, a, s, h: _from_eps(x, a, s, jnp.split(h, 2, axis=-1)[0]),
        channels=2,
        input=lambda x, a, s: x / jnp.hypot(a, s),
    ),
    "levels": Parameterization(
        predict=_from_levels, input=lambda x, a, s, pixel_levels: x, uses=("pixel_levels",)
    ),
}


# Fields of some parameterizations, and their defaults.
_PARAMETERS = {"sigma_data": 0.5, "sigma_min": 0.002}


def require_parameterization(name: str, **parameters: float) -> None:
    """Raise ValueError for an unknown parameterization, or a parameter that it cannot use."""
    require_choice("parameterization", name, PARAMETERIZATIONS)
    for field, value in parameters.items():
        require_in(field, value, "(0, inf)")
        users = [name for name, row in PARAMETERIZATIONS.items() if field in row.uses]
        if value != _PARAMETERS[field] and name not in users:
            raise ValueError(
                f"{field}={value} is used with parameterization={' or '.join(users)}, not with "
                f"{name!r}; leave it out"
            )


def _nearest_timestep(sde: SDE, t: Time, n: int) -> Time:
    """Return the timestep 0 .. n - 1 of the cosine chain whose sigma / alpha is nearest to t's.

    Karras et al. 2022, arXiv:2206.00364, Table 1, "iDDPM".
    """
    levels = np.sqrt(np.expm1(-np.cumsum(np.log1p(-BETAS["cosine"](n)))))
    middles = jnp.asarray((levels[1:] + levels[:-1]) / 2, t.dtype)
    return jnp.searchsorted(middles, jnp.exp(sde.log_snr(t) / -2)).astype(t.dtype)


# The network's time input, from the process, t in [0, 1] and n = num_timesteps.
CONDITIONINGS: dict[str, Callable[[SDE, Time, int], Time]] = {
    "t": lambda sde, t, n: t,
    # The continuous VP networks of Song et al. keep DDPM's range of the time input, 0..999.
    "timestep_999": lambda sde, t, n: 999.0 * t,
    # The timestep 0 .. n - 1 of a chain, or the timestep scaled to 0 .. 1000 (improved DDPM).
    "timestep": lambda sde, t, n: (n - 1) * t,
    "rescaled_timestep": lambda sde, t, n: 1000 * (n - 1) / n * t,
    # SMLD counts its timesteps from the largest sigma down.
    "reversed_timestep": lambda sde, t, n: jnp.round((1 - t) * (n - 1)),
    "log_sigma": lambda sde, t, n: sde.log_sigma(t),
    "log_snr": lambda sde, t, n: sde.log_snr(t),
    # EDM's log(sigma / alpha) / 4.
    "edm": lambda sde, t, n: -sde.log_snr(t) / 8,
    "iddpm": _nearest_timestep,
}


@runtime_checkable
class Guidance(Protocol):
    """A change of a denoiser's predictions toward a condition; a dataclass and a pytree.

    `batched_fields` names the fields that are arrays, or trees of arrays, with one entry per image
    of the batch. `evaluations` is the number of network evaluations per prediction.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def batched_fields(self) -> tuple[str, ...]: ...

    @property
    def evaluations(self) -> int: ...

    def __call__(self, denoiser: "Denoiser", x: Batch, t: Time) -> Prediction:
        """Return the guided prediction of `denoiser`, which does not contain this guidance."""
        ...


_STATIC = ("parameterization", "conditioning", "num_timesteps", "pixel_levels", "clipping")


@pytree(static=(*_STATIC, *_PARAMETERS))
@dataclass(frozen=True, kw_only=True)
class Denoiser:
    """A network that predicts data and noise from noisy data at every noise level.

    Args:
        sde: the process that made the noise.
        network: maps (input, condition), and labels if there are any, to an array shaped like the
            input. It is already closed over its parameters, best as
            `jax.tree_util.Partial(apply, params)`: the denoiser is then a pytree, and new
            parameters need no new compilation.
        energy: the function (input, condition, ...) -> (batch,) whose gradient by the input is the
            network, for `log_density`; None for a network that is no gradient.
        labels: the class of each image of the batch, for a class-conditional network.
        augment_labels: how each image was augmented in training; see `training.augmentation`.
        image: a small image per image of the batch, for an upsampler.
        end: the end x1 of the path of each image of the batch, in training with a coupling.
        parameterization: a name in PARAMETERIZATIONS.
        conditioning: a name in CONDITIONINGS.
        num_timesteps: length of the chain whose timesteps some conditionings count.
        sigma_data: standard deviation of the data, for parameterizations "edm" and "consistency".
            EDM takes 0.5 for images in [-1, 1].
        sigma_min: for "consistency", the level sigma / alpha where the function is the identity.
        pixel_levels: for "levels", the values of x0's pixels.
        clipping: of the predicted x0; eps and the score are changed to match. Each guidance
            receives the clipped prediction, and may clip the guided one.
        guidances: changes of the predictions, applied in order.
        uncertainty: maps (process, x_t, t, predicted eps) to `Prediction.uncertainty`; a pytree,
            such as those of `objectives.uncertainty`.

    Raises:
        ValueError: for an unknown name, fewer than two timesteps, or a sigma_data or pixel
            levels that are not used.
    """

    sde: SDE
    network: Network
    energy: Network | None = None
    labels: Int[Array, "batch"] | None = None
    augment_labels: Float[Array, "batch augment"] | None = None
    image: Batch | None = None
    end: Batch | None = None
    parameterization: str = "eps"
    conditioning: str = "timestep_999"
    num_timesteps: int = 1000
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    pixel_levels: PixelLevels | None = None
    clipping: Clipping = Clipping()
    guidances: tuple[Guidance, ...] = ()
    uncertainty: Callable[[SDE, Batch, Time, Batch], Batch] | None = None

    def __post_init__(self) -> None:
        require_parameterization(
            self.parameterization, sigma_data=self.sigma_data, sigma_min=self.sigma_min
        )
        if (self.pixel_levels is not None) != ("pixel_levels" in self._parameterization.uses):
            raise ValueError(
                f"pixel_levels={self.pixel_levels} does not go with parameterization="
                f"{self.parameterization!r}; give them for 'levels', and for it alone"
            )
        require_choice("conditioning", self.conditioning, CONDITIONINGS)
        require_in("num_timesteps", self.num_timesteps, "[2, inf)")
        for name in ("network", "energy"):
            function = getattr(self, name)
            if callable(function) and not isinstance(function, Partial):
                object.__setattr__(self, name, Partial(function))

    @property
    def evaluations(self) -> int:
        """Network evaluations per prediction, at most."""
        return math.prod(guidance.evaluations for guidance in self.guidances)

    @property
    def batched_fields(self) -> Any:
        """The tree of all arrays with one entry per image of the batch; see `index`."""
        guided = [{name: getattr(g, name) for name in g.batched_fields} for g in self.guidances]
        return self._conditions, guided

    def index(self, entry: Any) -> "Denoiser":
        """Return the denoiser of a batch of one image, whose entry of `batched_fields` is given."""
        conditions, guided = jax.tree.map(lambda array: array[None], entry)
        guidances = tuple(
            dataclasses.replace(guidance, **fields)
            for guidance, fields in zip(self.guidances, guided, strict=True)
        )
        return dataclasses.replace(self, **conditions, guidances=guidances)

    @property
    def _parameterization(self) -> Parameterization:
        return PARAMETERIZATIONS[self.parameterization]

    @property
    def _conditions(self) -> dict[str, Array | None]:
        """The fields that the network sees, with one entry per image."""
        names = ("labels", "augment_labels", "image")
        return {name: getattr(self, name) for name in names}

    def predict(self, x: Batch, t: Time | float) -> Prediction:
        """Predict (x0, eps) from x_t; t has shape () or (batch,)."""
        if self.guidances:
            *others, last = self.guidances
            t = jnp.asarray(t, x.dtype)
            return last(dataclasses.replace(self, guidances=tuple(others)), x, t)
        return self.clipped(self._interpret_output(x, t), x, t)

    def _interpret_output(self, x: Batch, t: Time | float) -> Prediction:
        """Return the prediction that the network's output encodes."""
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        parameterization = self._parameterization
        at = self._at(x, t)
        output = self._evaluate(self.network, x, t, at)
        levels = self.pixel_levels
        channels = parameterization.channels if levels is None else levels.gray_levels
        expected = (*x.shape[:-1], channels * x.shape[-1])
        if output.shape != expected:
            raise ValueError(
                f"parameterization={self.parameterization!r} needs a network output of shape "
                f"{expected}, not {output.shape}; use eps_learned_variance for a network with "
                "learned_variance, and only for such a network"
            )
        found = parameterization.predict(x, *at[:2], output, *at[2:])
        if self.uncertainty is None:
            return found
        return found._replace(uncertainty=self.uncertainty(self.sde, x, t, found.eps))

    def _at(self, x: Batch, t: Time | float) -> tuple[Any, ...]:
        """Return alpha, sigma and the fields that the maps of the parameterization take last."""
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        uses = self._parameterization.uses
        return (*self.coefficients(x, t), *(getattr(self, name) for name in uses))

    def _evaluate(self, function: Network, x: Batch, t: Time | float, at: tuple) -> Array:
        """Return the network's output, or its energy; `at` is from `_at`."""
        t = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
        condition = CONDITIONINGS[self.conditioning](self.sde, t, self.num_timesteps)
        inputs = self._parameterization.input(x, *at)
        labels = () if self.labels is None else (self.labels,)
        more = {k: v for k, v in self._conditions.items() if k != "labels" and v is not None}
        return function(inputs, condition, *labels, **more)

    def clipped(self, prediction: Prediction, x: Batch, t: Time | float) -> Prediction:
        """Return the prediction of x_t with x0 clipped and eps changed to match."""
        if self.clipping.clip == "none":
            return prediction
        x0 = self.clipping.apply(prediction.x0)
        # This keeps x = alpha x0 + sigma eps, and eps itself where nothing is clipped.
        alpha, sigma = self.coefficients(x, t)
        eps = prediction.eps + alpha / sigma * (prediction.x0 - x0)
        return prediction._replace(x0=x0, eps=eps)

    def guided(
        self, prediction: Prediction, gradient: Batch, x: Batch, t: Time | float
    ) -> Prediction:
        """Return the prediction of x_t with `gradient` added to its score."""
        alpha, sigma = self.coefficients(x, t)
        before = 0.0 if prediction.gradient is None else prediction.gradient
        return prediction._replace(
            x0=prediction.x0 + sigma**2 / alpha * gradient,
            eps=prediction.eps - sigma * gradient,
            gradient=before + gradient,
        )

    def coefficients(self, x: Batch, t: Time | float) -> tuple[Coefficient, Coefficient]:
        """Return alpha(t) and sigma(t) in shapes that broadcast against x."""
        t = jnp.asarray(t, x.dtype)
        return expand_like(self.sde.alpha(t), x), expand_like(self.sde.sigma(t), x)

    def require_mean(self, what: str) -> None:
        """Raise ValueError if x0 is no posterior mean, so that `what` has no scores."""
        if not PARAMETERIZATIONS[(name := self.parameterization)].predicts_mean:
            raise ValueError(f"{what} needs scores, which parameterization={name!r} does not have")

    def score(self, x: Batch, t: Time) -> Batch:
        """Return grad log p_t(x_t) = -eps / sigma."""
        return -self.predict(x, t).eps / expand_like(self.sde.sigma(t), x)

    def ode_velocity(self, x: Batch, t: Time) -> Batch:
        """Return the velocity dx/dt = f x - g^2 score / 2 of the probability-flow ODE."""
        return reverse_drift(self.sde, self.score(x, t), x, t, churn=0.0)

    def log_density(self, x: Batch, t: Time | float) -> Float[Array, "batch"]:
        """Return log p_t(x_t) in nats up to a constant of t; its gradient is the score.

        Raises:
            ValueError: for a network that is no gradient, and with guidance or clipping.
        """
        self.require_mean("a log-density")
        if self.energy is None:
            raise ValueError(
                "a log-density needs a network that is the gradient of an energy; train one with "
                "config.denoiser.energy=True, or give Denoiser an energy"
            )
        if self.guidances or self.clipping.clip != "none":
            what = "guidance" if self.guidances else "clipping of x0"
            raise ValueError(f"a score with {what} is the gradient of no energy; leave it out")
        parameterization, at = self._parameterization, self._at(x, t)
        alpha, sigma, *extra = at
        # The predicted noise is of_x x + of_h h, and the input of the network is gain x + offset.
        one, zero = jnp.ones_like(sigma), jnp.zeros_like(sigma)
        of_x = parameterization.predict(one, alpha, sigma, zero, *extra).eps
        of_h = parameterization.predict(zero, alpha, sigma, one, *extra).eps
        low, high = (parameterization.input(y, alpha, sigma, *extra) for y in (zero, one))
        energy = expand_like(self._evaluate(self.energy, x, t, at), x)
        quadratic = expand_like(sum_per_sample(x**2), x) / 2
        return -((of_x * quadratic + of_h / (high - low) * energy) / sigma).reshape(len(x))
