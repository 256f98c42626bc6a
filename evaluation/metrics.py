"""The metrics of `--mode=eval`, by the names in config.eval.metrics.

Adding one is a row of METRICS and a function that computes it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from errors import ConfigError, require_choices
from evaluation import chains, energies, likelihoods, samples, table
from evaluation.features import FEATURES, require_features_of
from evaluation.report import Evaluation, Report
from evaluation.samples import SampleSets
from evaluation.table import Row
from experiment.kinds import Kind
from experiment.options import EvaluationOptions
from experiment.reader import config_errors

_TEST = ("images.test", "model.num_classes")
_SAMPLES = (
    "images.",
    "eval.samples",
    "eval.features",
    "extractors.",
    "reference",
    "model.num_classes",
)


@dataclass(frozen=True, kw_only=True)
class Metric:
    """A metric of a checkpoint.

    Attributes:
        compute: computes it, from the evaluation or (with `of_samples`) from its samples.
        rows: its results as rows of a table.
        comparable: parts of the protocol in which two evaluations must agree to be compared.
        dequantizes: whether it needs a density of the test images.
        of_chain: whether it needs what the discrete bound needs of a checkpoint.
        of_samples: whether it looks at samples, and not at the likelihood of test images.
        of_energy: whether it needs a network that is the gradient of an energy, and no other score.
        min_samples: number of samples that it needs.
        min_images: number of training images that it needs.
        needs_probabilities: whether its features must come with class probabilities.
        kinds: the kinds of data that it suits, names in `experiment.kinds.KINDS`; () for all.
    """

    compute: Callable[[Any], Report]
    rows: Callable[[dict[str, Any]], Iterator[Row]]
    comparable: tuple[str, ...]
    dequantizes: bool = False
    of_chain: bool = False
    of_samples: bool = False
    of_energy: bool = False
    min_samples: int = 0
    min_images: int = 0
    needs_probabilities: bool = False
    kinds: tuple[str, ...] = ()


_of_samples = partial(Metric, comparable=_SAMPLES, of_samples=True)

METRICS: dict[str, Metric] = {
    "loss": Metric(
        compute=likelihoods.test_loss,
        rows=table.loss_rows,
        comparable=(*_TEST, "loss.", "times.", "weight.", "sde.", "eval.loss_repeats"),
    ),
    "bits_per_dim": Metric(
        compute=likelihoods.ode_likelihood,
        rows=table.ode_rows,
        comparable=(*_TEST, "likelihood.", "eval.dequantizations"),
        dequantizes=True,
        kinds=("images",),
    ),
    "nats_per_dim": Metric(
        compute=likelihoods.ode_likelihood,
        rows=table.nats_rows,
        comparable=(*_TEST, "likelihood."),
        kinds=("points", "series"),
    ),
    "log_density": Metric(
        compute=energies.log_density,
        rows=table.log_density_rows,
        comparable=(*_TEST, "likelihood.t_min"),
        of_energy=True,
    ),
    "continuous_bound": Metric(
        compute=likelihoods.continuous_bound_likelihood,
        rows=table.continuous_bound_rows,
        comparable=(*_TEST, "continuous_bound.", "eval.dequantizations"),
        dequantizes=True,
    ),
    "discrete_bound": Metric(
        compute=chains.discrete_bound_likelihood,
        rows=table.discrete_bound_rows,
        comparable=(*_TEST, "discrete_bound."),
        of_chain=True,
        kinds=("images",),
    ),
    "rate_distortion": Metric(
        compute=chains.rate_distortion,
        rows=table.rate_distortion_rows,
        comparable=(*_TEST, "discrete_bound."),
        of_chain=True,
        kinds=("images",),
    ),
    "frechet": _of_samples(
        compute=samples.frechet,
        rows=table.frechet_rows,
        min_samples=5,
    ),
    "sliced_wasserstein": _of_samples(
        compute=samples.sliced_wasserstein_distances,
        rows=partial(table.baseline_rows, "sliced Wasserstein"),
        min_samples=4,
        min_images=4,
    ),
    "mmd": _of_samples(
        compute=samples.mmd,
        rows=partial(table.baseline_rows, "MMD squared"),
        min_samples=4,
        min_images=4,
    ),
    "kid": _of_samples(
        compute=samples.kid,
        rows=table.kid_rows,
        min_samples=4,
        min_images=4,
    ),
    "precision_recall": _of_samples(
        compute=samples.precision_and_recall,
        rows=table.precision_recall_rows,
        min_samples=4,
        min_images=4,
    ),
    "inception_score": _of_samples(
        compute=samples.inception,
        rows=table.inception_score_rows,
        min_samples=10,
        needs_probabilities=True,
    ),
}


def compute_metric(name: str, evaluation: Evaluation, sets: SampleSets) -> Report:
    """Compute a metric by its name."""
    metric = METRICS[name]
    return metric.compute(sets if metric.of_samples else evaluation)


def check_options(options: EvaluationOptions, kind: Kind) -> None:
    """Raise ConfigError for metrics, features, a reference or data that do not fit together."""
    for field, valid in (("metrics", METRICS), ("features", FEATURES)):
        with config_errors("eval"):
            require_choices(field, getattr(options, field), valid)
    for name in options.features:
        require_features_of("config.eval.features", name, kind)
    for name in options.metrics:
        if not kind.is_among(METRICS[name].kinds):
            able = [other for other, row in METRICS.items() if kind.is_among(row.kinds)]
            raise ConfigError(
                f"config.eval.metrics={options.metrics!r}: {name} is not for {kind.name}; choose "
                f"some of: {', '.join(able)}"
            )
    probabilities = any(FEATURES[name].has_probabilities for name in options.features)
    for name in options.metrics:
        metric = METRICS[name]
        if options.samples < metric.min_samples:
            raise ConfigError(
                f"config.eval.samples={options.samples} is too small for {name}; give at least "
                f"{metric.min_samples}, or leave it out of config.eval.metrics"
            )
        if metric.needs_probabilities and not probabilities:
            able = [kind for kind, row in FEATURES.items() if row.has_probabilities]
            raise ConfigError(
                f"config.eval.metrics has {name}, which needs class probabilities; choose "
                f"config.eval.features={' or '.join(able)}"
            )
    if options.reference and "frechet" not in options.metrics:
        raise ConfigError(
            f"config.eval.reference={options.reference!r} is used by frechet, which is not in "
            f"config.eval.metrics={options.metrics!r}; add it, or leave the reference out"
        )
    if options.reference and len(options.features) > 1:
        raise ConfigError(
            f"config.eval.reference={options.reference!r} belongs to one kind of features, but "
            f"config.eval.features={options.features!r}; choose one"
        )
