"""Guidance toward classes, by the name config.guidance.name.

Each method is a row of GUIDANCES. Adding one is a row and a function that makes the guidance.
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Array, Int

from denoising import Guidance
from errors import require_choice, require_in
from guidance.base import require_interval
from guidance.classifier import Classifier, ClassifierGuidance
from guidance.classifier_free import ClassifierFreeGuidance


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The numbers of classes that networks know; 0 for a network without classes."""

    network: int
    classifier: int
    label_dropout: float


@dataclass(frozen=True, kw_only=True)
class GuidanceMethod:
    """One way to guide samples toward their classes.

    Attributes:
        make: (options, classes, classifier or None, labels) -> guidance.
        sample_classes: number of classes of the samples. It raises ValueError where the method
            does not suit the networks.
        default_scale: the scale where none is given.
        needs_classifier: whether it uses the noise-conditional classifier of the run.
        takes_interval: whether it may act between two times only.
        evaluations: network evaluations per prediction.
    """

    make: "Callable[[GuidanceOptions, Classes, Classifier | None, Int[Array, ' b']], Guidance]"
    sample_classes: Callable[[Classes], int]
    default_scale: float = 1.0
    needs_classifier: bool = False
    takes_interval: bool = False
    evaluations: int = 1


def _classifier_free(
    options: "GuidanceOptions", classes: Classes, classifier: Classifier | None, labels: Array
) -> Guidance:
    first, last = options.interval
    interval = (float(first), float(last))
    return ClassifierFreeGuidance(
        null_label=classes.network, scale=options.resolved_scale, interval=interval
    )


def _classifier_free_classes(classes: Classes) -> int:
    if not classes.network:
        raise ValueError(
            "name='classifier_free' needs a class-conditional network, but "
            "config.model.num_classes=0; choose classifier and run --mode=train_classifier"
        )
    if not classes.label_dropout:
        raise ValueError(
            "name='classifier_free' evaluates the network without a class too, which "
            "config.training.label_dropout=0 never trains"
        )
    return classes.network


def _classifier(
    options: "GuidanceOptions", classes: Classes, classifier: Classifier | None, labels: Array
) -> Guidance:
    assert classifier is not None, "a checkpoint is loaded with the classifier that it needs"
    return ClassifierGuidance(classifier=classifier, labels=labels, scale=options.resolved_scale)


def _classifier_classes(classes: Classes) -> int:
    if classes.network not in (0, classes.classifier):
        raise ValueError(
            f"name='classifier' needs equal numbers of classes, but config.classifier.num_classes="
            f"{classes.classifier} and config.model.num_classes={classes.network}"
        )
    return classes.classifier


GUIDANCES: dict[str, GuidanceMethod | None] = {
    "none": None,
    "classifier": GuidanceMethod(
        make=_classifier, sample_classes=_classifier_classes, needs_classifier=True
    ),
    "classifier_free": GuidanceMethod(
        make=_classifier_free,
        sample_classes=_classifier_free_classes,
        default_scale=2.0,
        takes_interval=True,
        evaluations=2,
    ),
}


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """How strongly samples are guided toward their classes.

    Args:
        name: a name in GUIDANCES.
        scale: 1 samples the class; more trades diversity for class accuracy. None for the default
            of the method.
        interval: the times between which classifier-free guidance acts.

    Raises:
        ValueError: for an unknown name, a number out of range, or a field that is not used.
    """

    name: str = "none"
    scale: float | None = None
    interval: tuple = (0.0, 1.0)

    def __post_init__(self) -> None:
        require_choice("name", self.name, GUIDANCES)
        if self.method is None and self.scale is not None:
            methods = " or ".join(name for name, row in GUIDANCES.items() if row is not None)
            raise ValueError(f"scale={self.scale} is not used with name='none'; choose {methods}")
        require_in("scale", self.scale, "[0, inf)")
        require_interval("interval", self.interval)
        takes_interval = self.method is not None and self.method.takes_interval
        if not takes_interval and tuple(self.interval) != (0, 1):
            takers = (name for name, row in GUIDANCES.items() if row and row.takes_interval)
            raise ValueError(
                f"interval={self.interval} is used with name={' or '.join(takers)}, not with "
                f"{self.name!r}"
            )

    @property
    def method(self) -> GuidanceMethod | None:
        """The row of GUIDANCES."""
        return GUIDANCES[self.name]

    @property
    def resolved_scale(self) -> float:
        """The scale, or the method's default."""
        default = 1.0 if self.method is None else self.method.default_scale
        return default if self.scale is None else self.scale

    @property
    def evaluations(self) -> int:
        """Network evaluations per prediction."""
        return 1 if self.method is None else self.method.evaluations
