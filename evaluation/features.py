"""Feature extractors, by the names in config.eval.features.

Adding one is a row of FEATURES and a function that makes it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from errors import ConfigError, require_choice
from experiment.experiment import Experiment
from experiment.kinds import Kind
from guidance.classifier import Classifier
from jobs.diagnostics import check_metrics
from jobs.restore import load_classifier
from jobs.workdir import Workdir
from metrics.features import PIXELS, RAW, THUMBNAILS, Extracted, Extractor
from metrics.inception.weights import inception_features, weights_file
from numerics.arrays import digest
from training.wandb_log import require_wandb


@dataclass(frozen=True, kw_only=True)
class FeatureKind:
    """A kind of features.

    Attributes:
        make: (experiment, workdir) -> extractor. It raises ConfigError for missing weights.
        has_probabilities: whether it predicts classes too, as the Inception Score needs.
        kinds: the kinds of data that it takes, names in `experiment.kinds.KINDS`; () for all.
    """

    make: Callable[[Experiment, Workdir], Extractor]
    has_probabilities: bool = False
    kinds: tuple[str, ...] = ()


def make_extractors(experiment: Experiment, workdir: Workdir) -> tuple[Extractor, ...]:
    """Make the extractors that `config.eval.features` names.

    Raises:
        ConfigError: for weights that are neither at hand nor to be had.
    """
    names = experiment.evaluation.features
    return tuple(FEATURES[name].make(experiment, workdir) for name in names)


def check_measurements(experiment: Experiment) -> None:
    """Raise ConfigError for names that training would refuse to measure by, or to log to."""
    if experiment.diagnostics.every:
        check_metrics(experiment.diagnostics, experiment.data.kind)
        _require_features(experiment.diagnostics.features, experiment.data.kind)
    if experiment.logging.wandb:
        require_wandb(experiment.logging.wandb)


def _require_features(name: str, kind: Kind) -> None:
    try:
        require_choice("config.diagnostics.features", name, FEATURES)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    require_features_of("config.diagnostics.features", name, kind)


def require_features_of(field: str, name: str, kind: Kind) -> None:
    """Raise ConfigError unless features suit the kind of data; `field` names them."""
    if not kind.is_among(FEATURES[name].kinds):
        able = [other for other, row in FEATURES.items() if kind.is_among(row.kinds)]
        raise ConfigError(
            f"{field}={name!r} is not for {kind.name}; choose some of: {', '.join(able)}"
        )


def diagnostics_extractor(experiment: Experiment, workdir: Workdir) -> Extractor:
    """Make the extractor that `config.diagnostics.features` names.

    Raises:
        ConfigError: for an unknown name, or weights that are neither at hand nor to be had.
    """
    name = experiment.diagnostics.features
    _require_features(name, experiment.data.kind)
    try:
        return FEATURES[name].make(experiment, workdir)
    except ConfigError as error:  # which names the field of an evaluation
        raise ConfigError(str(error).replace("config.eval.", "config.diagnostics.")) from error


def _ready(extractor: Extractor) -> Callable[[Experiment, Workdir], Extractor]:
    """Return the `make` of features that need neither an experiment nor files."""
    return lambda experiment, workdir: extractor


def _inception(experiment: Experiment, workdir: Workdir) -> Extractor:
    channels = experiment.data.shape[2]
    if channels not in (1, 3):
        raise ConfigError(
            "config.eval.features='inception' takes images of 1 or 3 channels, but "
            f"config.data.channels={channels}; choose pixels or classifier"
        )
    options = experiment.evaluation
    try:
        weights = weights_file(options.inception_weights)
        return inception_features(weights, resize=options.inception_resize)
    except (ValueError, OSError) as error:
        raise ConfigError(f"config.eval.features='inception': {error}") from error


def _classifier(experiment: Experiment, workdir: Workdir) -> Extractor:
    classifier = load_classifier(experiment, workdir, "config.eval.features")
    t_min, data = experiment.parts.classifier.loss.t_min, experiment.data
    quantized = data.kind.quantized
    identity = digest((classifier.network.args, np.float64(t_min)))

    @jax.jit
    def extract(classifier: Classifier, x: Float[Array, "batch ..."]) -> tuple[Array, Array]:
        output = classifier.outputs(x, t_min)
        return output.features, jax.nn.softmax(output.logits)

    def compute(images: Any) -> Extracted:
        unit = jnp.asarray(images, jnp.float32) / 255
        x = data.scaler.forward(unit) if quantized else data.encode(images)
        features, probabilities = extract(classifier, jnp.asarray(x))
        return Extracted(np.asarray(features), np.asarray(probabilities))

    return Extractor("classifier", identity, compute, of_images=quantized)


FEATURES: dict[str, FeatureKind] = {
    "classifier": FeatureKind(make=_classifier, has_probabilities=True),
    "inception": FeatureKind(make=_inception, has_probabilities=True, kinds=("images",)),
    "pixels": FeatureKind(make=_ready(PIXELS), kinds=("images",)),
    "raw": FeatureKind(make=_ready(RAW), kinds=("points", "series")),
    "thumbnails": FeatureKind(make=_ready(THUMBNAILS), kinds=("images",)),
}
