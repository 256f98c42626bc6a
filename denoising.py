r"""The Denoiser: the interface between networks and samplers, losses and likelihoods.

A network computes h = network(input_map(x_t), conditioning(t)). A parameterization defines how h
encodes the pair (x0, eps), tied by x_t = alpha x0 + sigma eps; `numerics.parameterizations` has
them all. The score is then -eps / sigma (Vincent 2011; Song et al. 2021, arXiv:2011.13456).
Samplers, losses and likelihoods call `predict` and `score` only, whatever the network was trained
to output.
"""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float, Int

from errors import require_choice, require_in
from numerics.arrays import Batch, expand_like, pytree, sum_per_sample
from numerics.clipping import Clipping
from numerics.parameterizations import (
    FIELD_DEFAULTS,
    PARAMETERIZATIONS,
    Parameterization,
    Prediction,
    require_parameterization,
)
from numerics.pixel_levels import PixelLevels
from sde_lib import BETAS, SDE, Time, reverse_drift

Coefficient = Float[Array, "..."]
# Of (input, condition), then of labels, and by name of `augment_labels` and `image`, where present.
Network = Callable[..., Batch]


def _nearest_timestep(sde: SDE, t: Time, n: int) -> Time:
    """Return the timestep 0 .. n - 1 of the cosine chain whose sigma / alpha is nearest to t's.

    Karras et al. 2022, arXiv:2206.00364, Table 1, "iDDPM".
    """
    levels = np.sqrt(np.expm1(-np.cumsum(np.log1p(-BETAS["cosine"](n)))))
    middles = jnp.asarray((levels[1:] + levels[:-1]) / 2, t.dtype)
    return jnp.searchsorted(middles, jnp.exp(sde.log_snr(t) / -2)).astype(t.dtype)


@dataclass(frozen=True)
class Conditioning:
    """The network's time input, from the process, t in [0, 1] and n = num_timesteps.

    Args:
        function: the map (sde, t, n) -> time input.
        counts: whether it counts the n timesteps of the process, which must have as many.
        embeds: whether it is the timestep itself, which a network may embed.
    """

    function: Callable[[SDE, Time, int], Time]
    counts: bool = False
    embeds: bool = False

    def __call__(self, sde: SDE, t: Time, n: int) -> Time:
        return self.function(sde, t, n)


CONDITIONINGS = {
    "t": Conditioning(lambda sde, t, n: t),
    # The continuous VP networks of Song et al. keep DDPM's range of the time input, 0..999.
    "timestep_999": Conditioning(lambda sde, t, n: 999.0 * t),
    # The timestep 0 .. n - 1 of a chain, or the timestep scaled to 0 .. 1000 (improved DDPM).
    "timestep": Conditioning(lambda sde, t, n: (n - 1) * t, counts=True, embeds=True),
    "rescaled_timestep": Conditioning(lambda sde, t, n: 1000 * (n - 1) / n * t, counts=True),
    # SMLD counts its timesteps from the largest sigma down.
    "reversed_timestep": Conditioning(
        lambda sde, t, n: jnp.round((1 - t) * (n - 1)), counts=True, embeds=True
    ),
    "log_sigma": Conditioning(lambda sde, t, n: sde.log_sigma(t)),
    "log_snr": Conditioning(lambda sde, t, n: sde.log_snr(t)),
    # EDM's log(sigma / alpha) / 4.
    "edm": Conditioning(lambda sde, t, n: -sde.log_snr(t) / 8),
    "iddpm": Conditioning(_nearest_timestep),
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


@pytree(static=(*_STATIC, *FIELD_DEFAULTS))
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
        if (self.pixel_levels is not None) != self._parameterization.of_levels:
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
        """Predict (x0, eps) from x_t, by `evaluations` network evaluations.

        Args:
            x: x_t (batch, ...), in the network's range.
            t: the time, of shape () or (batch,), in [0, 1]; above 0 where sigma(0) = 0.

        Raises:
            ValueError: if the network's output does not have the shape that the parameterization
                needs.
        """
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
        """Return grad log p_t(x_t) = -eps / sigma (batch, ...).

        Arguments and errors are those of `predict`; sigma(t) must be above 0.
        """
        return -self.predict(x, t).eps / expand_like(self.sde.sigma(t), x)

    def ode_velocity(self, x: Batch, t: Time) -> Batch:
        """Return the velocity dx/dt = f x - g^2 score / 2 (batch, ...) of the probability-flow ODE.

        Arguments and errors are those of `predict`; t must be above 0.
        """
        return reverse_drift(self.sde, self.score(x, t), x, t, churn=0.0)

    def log_density(self, x: Batch, t: Time | float) -> Float[Array, "batch"]:
        """Return log p_t(x_t) (batch,) in nats up to a constant of t; its gradient is the score.

        Args:
            x: x_t (batch, ...), in the network's range.
            t: the time, of shape () or (batch,), in [0, 1]; above 0 where sigma(0) = 0.

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
