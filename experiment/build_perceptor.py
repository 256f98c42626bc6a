"""Build the perceptor of a run, config.perceptor: what it is, and what trains it."""

from functools import cache, partial
from typing import Any

from jax.tree_util import Partial
from jaxtyping import Array, Key

from experiment.build_training import part_trainer
from experiment.data import Data
from experiment.perceptor import PerceptorModel, PerceptorOptions
from experiment.reader import Reader
from guidance.perceptor import CaptionModel, ContrastiveLoss, Cutouts
from models.clip import CLIP, apply_clip, init_clip
from training.step import Trainer


def build_perceptor(reader: Reader, data: Data) -> PerceptorModel:
    """Return the perceptor that a configuration describes.

    Raises:
        ConfigError: for the first field that is wrong.
    """
    options = reader.build("perceptor", PerceptorOptions)
    return PerceptorModel(options=options, data=data, make_trainer=_trainer)


def _trainer(perceptor: PerceptorModel) -> Trainer:
    """Return what trains a perceptor."""
    options, data = perceptor.options, perceptor.data
    low, high = data.limits
    network: Any = perceptor.network

    def model(params: Any, dropout: Key[Array, ""] | None = None) -> CaptionModel:
        apply = _function(network)
        return CaptionModel(network=Partial(apply, params), low=low, high=high)

    cutouts = Cutouts(count=1, smallest=options.cutout_min)
    return part_trainer(
        "perceptor",
        options,
        data,
        init=partial(init_clip, network),
        model=model,
        loss=ContrastiveLoss(captions=perceptor.tokens, cutouts=cutouts, noise=options.noise),
        classes=len(perceptor.captions),
    )


@cache
def _function(network: CLIP) -> Any:
    """Return the function (params, images, tokens) of a network, one for all who need it."""
    return partial(apply_clip, network)
