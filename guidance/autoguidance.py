r"""Autoguidance: a network guided away from a bad version of itself.

A smaller or less trained network makes the errors of a good one, and more of them. The step from
its prediction to the good one, taken scale times, leads away from these errors,

    D = D_bad + scale (D_good - D_bad),

without the loss of diversity of classifier-free guidance (Karras et al. 2024, arXiv:2406.02507,
Eq. 3). It needs no classes: the bad network sees those of the good one, if there are any. The
prediction of eps, and so the score, changes in the same way, since x0 and eps are tied by x_t.
"""

import dataclasses
from dataclasses import dataclass

from denoising import Denoiser, Prediction
from errors import require_in
from guidance.base import Number, inside_interval, require_interval
from numerics.arrays import Batch, pytree
from numerics.clipping import Clipping
from sde_lib import Time


@pytree(static=("interval", "bad_knows_classes"))
@dataclass(frozen=True, kw_only=True)
class Autoguidance:
    """Extrapolation from a bad network's prediction to that of the guided one.

    Args:
        bad: the bad network, of the same process and images. Its labels and small images are those
            of the guided denoiser.
        bad_knows_classes: whether it takes labels too, where the guided denoiser has them.
        scale: 0 is the bad network, 1 is the guided one as it was, larger values lead away from the
            bad one.
        interval: the guided times (first, last). At other times the guided network alone is
            evaluated.

    Raises:
        ValueError: for numbers out of range.
    """

    bad: Denoiser
    bad_knows_classes: bool = True
    scale: Number = 2.0
    interval: tuple[float, float] = (0.0, 1.0)
    batched_fields = ()
    evaluations = 2

    def __post_init__(self) -> None:
        require_in("scale", self.scale, "[0, inf)")
        require_interval("interval", self.interval)

    def __call__(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        return inside_interval(self.interval, denoiser, x, t, self._extrapolate)

    def _extrapolate(self, denoiser: Denoiser, x: Batch, t: Time) -> Prediction:
        # Clipping is last because the extrapolation leaves the data's range.
        good = dataclasses.replace(denoiser, clipping=Clipping()).predict(x, t)
        labels = denoiser.labels if self.bad_knows_classes else None
        bad = dataclasses.replace(
            self.bad, labels=labels, image=denoiser.image, clipping=Clipping()
        ).predict(x, t)
        # This is the good prediction exactly for scale 1.
        x0 = good.x0 + (self.scale - 1) * (good.x0 - bad.x0)
        eps = good.eps + (self.scale - 1) * (good.eps - bad.eps)
        return denoiser.clipped(good._replace(x0=x0, eps=eps), x, t)
