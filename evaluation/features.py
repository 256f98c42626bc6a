"""The feature extractors that a configuration names, ready to be used."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from errors import ConfigError
from experiment.experiment import Experiment
from guidance.classifier import Classifier
from jobs import restore
from jobs.workdir import Workdir
from metrics.features import PIXELS, Extracted, Extractor, Images
from metrics.inception.weights import inception_features, weights_file
from numerics.arrays import digest


def of(experiment: Experiment, workdir: Workdir) -> tuple[Extractor, ...]:
    """The extractors that `config.eval.features` names.

    Raises:
      ConfigError: for weights that are neither at hand nor to be had.
    """
    return tuple(
        EXTRACTORS[name](experiment, workdir) for name in experiment.config["eval"]["features"]
    )


def _pixels(experiment: Experiment, workdir: Workdir) -> Extractor:
    return PIXELS


def _inception(experiment: Experiment, workdir: Workdir) -> Extractor:
    channels = experiment.item_shape[2]
    if channels not in (1, 3):
        raise ConfigError(
            f"config.eval.features='inception' looks at 3 channels (or 1, repeated), but "
            f"config.data.channels={channels}; choose pixels or classifier"
        )
    try:
        settings = experiment.config["eval"]
        weights = weights_file(settings["inception_weights"])
        return inception_features(weights, resize=settings["inception_resize"])
    except (ValueError, OSError) as error:
        raise ConfigError(f"config.eval.features='inception': {error}") from error


def _classifier(experiment: Experiment, workdir: Workdir) -> Extractor:
    classifier = restore.trained_classifier(experiment, workdir, "config.eval.features")
    settings, scaler = experiment.config["classifier"], experiment.scaler
    identity = digest((classifier.network.args, np.float64(settings["t_min"])))

    @jax.jit
    def answer(classifier: Classifier, x: Float[Array, "batch h w c"]) -> Extracted:
        answer = classifier.outputs(x, settings["t_min"])
        return Extracted(answer.features, jax.nn.softmax(answer.logits))

    def compute(images: Images) -> Extracted:
        x = scaler.forward(jnp.asarray(images, jnp.float32) / 255)
        return Extracted(*map(np.asarray, answer(classifier, x)))

    return Extractor("classifier", identity, compute)


EXTRACTORS: dict[str, Callable[[Experiment, Workdir], Extractor]] = {
    "classifier": _classifier,
    "inception": _inception,
    "pixels": _pixels,
}
