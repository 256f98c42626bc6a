"""The perceptor of guidance by texts: training one, and reading one with the prompts."""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial
from jaxtyping import Array, Float

from data.pictures import to_channels
from data.stored import decode
from errors import ConfigError, ScoreSDEError
from experiment.experiment import Experiment
from experiment.prompts import Prompted, PromptOptions
from files.copies import local_input
from files.paths import AnyPath
from guidance.perceptor import Perceptor, resized
from jobs.workdir import Workdir
from models.clip import CLIP, embed_images, embed_texts
from published.clip import PublishedCLIP, read_clip, write_clip
from training.checkpoints import Checkpoints
from training.hosts import agreed

_SIDES = (1, 3)  # channels that are converted into each other


def load_perceptor(experiment: Experiment, workdir: Workdir) -> Prompted:
    """Return the perceptor of config.guidance with the vectors of its prompts.

    Raises:
        ConfigError: for a perceptor that is missing, damaged or does not suit the images, and for
            prompts that it cannot read.
    """
    options: PromptOptions = experiment.sampler.guidance_details
    own = workdir.perceptor.clip
    if not options.perceptor and not agreed(own.exists):
        raise ConfigError(
            f"config.guidance.name='text', but there is no perceptor in {own} yet; run "
            "--mode=train_perceptor first, or give a CLIP by config.guidance.perceptor="
            "hf:openai/clip-vit-base-patch32"
        )
    name = options.perceptor or str(own)
    return agreed(lambda: _load(experiment, options, name))


def _load(experiment: Experiment, options: PromptOptions, name: str) -> Prompted:
    where = f"config.guidance.perceptor={name!r}"
    try:
        read = read_clip(name, where)
    except ScoreSDEError:
        raise
    except (ValueError, OSError) as error:
        raise ConfigError(str(error)) from error
    height, width, channels = experiment.data.shape
    if channels != read.network.channels and {channels, read.network.channels} != set(_SIDES):
        raise ConfigError(
            f"{where} sees images of {read.network.channels} channels, and those of the run have "
            f"{channels}; give another one"
        )
    if height != width:
        raise ConfigError(f"{where} sees square images, and those of the run are {height}x{width}")
    network: Any = read.network
    params = jax.tree.map(jnp.asarray, read.params)
    perceptor = Perceptor(
        network=Partial(_function(network), params),
        image_size=read.network.image_size,
        channels=read.network.channels,
        mean=read.mean,
        std=read.std,
    )
    try:
        targets = [*_of_texts(read, options), *_of_images(perceptor, options)]
    except ValueError as error:
        raise ConfigError(f"config.guidance.{error}") from error
    weights = [weight for _, weight in (*options.texts, *options.images)]
    return Prompted(perceptor, jnp.stack(targets), jnp.asarray(weights, jnp.float32))


def _of_texts(read: PublishedCLIP, options: PromptOptions) -> Float[Array, "texts d"]:
    texts = [text for text, _ in options.texts]
    if not texts:
        return jnp.zeros((0, read.network.embedding))
    return embed_texts(read.network, read.params, jnp.asarray(read.tokenizer.encode(texts)))


def _of_images(perceptor: Perceptor, options: PromptOptions) -> list[Float[Array, "d"]]:
    found = []
    for name, _ in options.images:
        picture, more_pages = decode(local_input(name), f"image_prompt={name!r}")
        if more_pages:
            raise ValueError(f"image_prompt={name!r} has several pages; give one image per file")
        image = to_channels(picture.astype(np.float32) / 255, perceptor.channels)
        found.append(perceptor.embed(resized(jnp.asarray(image)[None], perceptor.image_size))[0])
    return found


@cache
def _function(network: CLIP) -> Any:
    """Return the function (params, images) of a network, one for all who need it."""
    return partial(embed_images, network)


def export_perceptor(experiment: Experiment, workdir: Workdir) -> AnyPath:
    """Write the run's trained perceptor as the folder of a CLIP; return it."""
    model, folder = experiment.parts.perceptor, workdir.perceptor
    template = model.trainer.abstract_parameters()
    restored = Checkpoints(folder.checkpoints).restore(template, partial=True)
    assert restored is not None, "it has been trained"
    params = experiment.parallel.fetch_tree(restored.state.ema_params)
    if experiment.parallel.leads:
        write_clip(folder.clip, model.network, params, model.tables, model.standardization)
    return folder.clip
