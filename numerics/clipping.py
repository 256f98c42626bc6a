"""Clipping of a predicted image to the range of the data."""

from dataclasses import dataclass

import jax.numpy as jnp

from errors import require_choice, require_in
from numerics.arrays import Batch, expand_like

CLIPS = ("none", "range", "dynamic")


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """Clipping of the predicted x0 to the range of the data.

    Args:
        clip: "none"; "range", which clips x0 to [low, high] (Ho et al. 2020); or "dynamic".
            Dynamic clipping measures the distance of each value from the middle of the range, and
            takes the `quantile` of a sample's distances. If it is beyond the range, x0 is clipped
            to that distance, then scaled back into the range (Saharia et al. 2022,
            arXiv:2205.11487, Section 2.3).
        quantile: in (0, 1), by default 0.995; for dynamic clipping only.
        low, high: the range of the data.

    Raises:
        ValueError: for an unknown name, or a quantile that is out of range or without effect.
    """

    clip: str = "none"
    quantile: float | None = None
    low: float = -1.0
    high: float = 1.0

    def __post_init__(self) -> None:
        require_choice("clip", self.clip, CLIPS)
        if self.quantile is not None:
            require_in("quantile", self.quantile, "(0, 1)")
            if self.clip != "dynamic":
                raise ValueError(
                    f"quantile={self.quantile} needs clip='dynamic', not clip={self.clip!r}; "
                    "set that or leave the quantile out"
                )

    def apply(self, x0: Batch) -> Batch:
        """Return x0 clipped to the range; `clip` must not be "none"."""
        if self.clip == "range":
            return jnp.clip(x0, self.low, self.high)
        middle, radius = (self.low + self.high) / 2, (self.high - self.low) / 2
        centered = (x0 - middle) / radius
        quantile = 0.995 if self.quantile is None else self.quantile
        size = jnp.quantile(jnp.abs(centered).reshape(len(x0), -1), quantile, axis=-1)
        size = expand_like(jnp.maximum(size, 1), x0)
        return middle + radius * jnp.clip(centered, -size, size) / size
