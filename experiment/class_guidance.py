"""Guidance of plain samples, toward classes, quality or texts, by the name config.guidance.name.

Each method is a row of GUIDANCES. Adding one is a row and a function that makes the guidance.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxtyping import Array, Int, Key

from denoising import Denoiser, Guidance
from errors import require_choice, require_in
from experiment.prompts import PromptOptions
from guidance.autoguidance import Autoguidance
from guidance.base import require_interval
from guidance.classifier import ClassifierGuidance
from guidance.classifier_free import ClassifierFreeGuidance, ClassifierFreeOptions
from guidance.text import DEFAULT_SCALE, PromptGuidance


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The numbers of classes that networks know; 0 for a network without classes."""

    network: int
    classifier: int
    label_dropout: float


@dataclass(frozen=True, kw_only=True)
class GuidanceMethod:
    """One way to guide samples.

    Attributes:
        make: from what a batch of samples is guided by to the guidance.
        sample_classes: number of classes of the samples. It raises ValueError where the method
            does not suit the networks.
        default_scale: the scale where none is given.
        neutral_scale: the scale at which samples are those without guidance, and none is applied.
        needs: the second model that it uses: "classifier", the noise-conditional classifier of the
            run; "bad_model", the network of config.guidance.run; "perceptor", that of
            config.guidance.perceptor with its prompts; or "".
        takes_interval: whether it may act between two times only.
        evaluations: network evaluations per prediction.
        options: the class of options that it has beside `GuidanceOptions`; None for none.
        check: (these options, config.sampling.clip) -> None, which raises ValueError where the two
            do not go together; None where they always do.
        images_only: whether it is for images, not for points and series.
    """

    make: "Callable[[GuidedBatch], Guidance]"
    sample_classes: Callable[[Classes], int]
    default_scale: float = 1.0
    neutral_scale: float | None = None
    needs: str = ""
    takes_interval: bool = False
    evaluations: int = 1
    options: type | None = None
    check: Callable[[Any, str | None], None] | None = None
    images_only: bool = False


class GuidedBatch(NamedTuple):
    """What a batch of samples is guided by.

    Attributes:
        options: the fields of config.guidance that several methods have.
        own: the object of `GuidanceMethod.options`, None for none.
        classes: numbers of classes that the networks know.
        model: the model of `GuidanceMethod.needs`, None for none.
        labels: the class of each sample, None for no classes.
        keys: one key per sample.
        limits: the range of the data.
    """

    options: "GuidanceOptions"
    own: Any
    classes: Classes
    model: Any
    labels: Int[Array, "batch"] | None
    keys: Key[Array, "batch"]
    limits: tuple[float, float]


def _classifier_free(batch: GuidedBatch) -> Guidance:
    return ClassifierFreeGuidance(
        null_label=batch.classes.network,
        scale=batch.options.resolved_scale,
        interval=batch.options.times,
        rescale=batch.own.rescale,
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


def _classifier(batch: GuidedBatch) -> Guidance:
    assert batch.labels is not None, "the samples have the classifier's classes"
    scale = batch.options.resolved_scale
    return ClassifierGuidance(classifier=batch.model, labels=batch.labels, scale=scale)


def _classifier_classes(classes: Classes) -> int:
    if classes.network not in (0, classes.classifier):
        raise ValueError(
            f"name='classifier' needs equal numbers of classes, but config.classifier.num_classes="
            f"{classes.classifier} and config.model.num_classes={classes.network}"
        )
    return classes.classifier


class BadModel(NamedTuple):
    """The network that autoguidance leads away from, and whether it is class-conditional."""

    denoiser: Denoiser
    knows_classes: bool


def _autoguidance(batch: GuidedBatch) -> Guidance:
    return Autoguidance(
        bad=batch.model.denoiser,
        bad_knows_classes=batch.model.knows_classes,
        scale=batch.options.resolved_scale,
        interval=batch.options.times,
    )


def _text(batch: GuidedBatch) -> Guidance:
    low, high = batch.limits
    return PromptGuidance(
        **batch.model._asdict(),
        keys=batch.keys,
        scale=batch.options.resolved_scale,
        interval=batch.options.times,
        low=low,
        high=high,
        cutouts=batch.own.parts,
        range_scale=batch.own.range_scale,
        variation_scale=batch.own.variation_scale,
        through_network=batch.own.through_network,
    )


GUIDANCES: dict[str, GuidanceMethod | None] = {
    "none": None,
    "classifier": GuidanceMethod(
        make=_classifier, sample_classes=_classifier_classes, needs="classifier"
    ),
    "classifier_free": GuidanceMethod(
        make=_classifier_free,
        sample_classes=_classifier_free_classes,
        default_scale=2.0,
        takes_interval=True,
        evaluations=2,
        options=ClassifierFreeOptions,
    ),
    "autoguidance": GuidanceMethod(
        make=_autoguidance,
        sample_classes=lambda classes: classes.network,
        default_scale=2.0,
        neutral_scale=1.0,
        needs="bad_model",
        takes_interval=True,
        evaluations=2,
    ),
    "text": GuidanceMethod(
        make=_text,
        sample_classes=lambda classes: classes.network,
        default_scale=DEFAULT_SCALE,
        needs="perceptor",
        takes_interval=True,
        options=PromptOptions,
        check=PromptOptions.check,
        images_only=True,
    ),
}


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """How samples are guided, and how strongly.

    Args:
        name: a name in GUIDANCES.
        scale: 1 samples the class; more trades diversity for class accuracy, or for autoguidance
            leads away from the bad model. Of texts, it is the factor of the distance between image
            and prompt. None for the default of the method.
        interval: the times between which classifier-free guidance, autoguidance and guidance by
            texts act.
        run: the bad model of autoguidance: RUN or RUN:STEP, the folder of another run; or :STEP, a
            step of the run itself.

    Raises:
        ValueError: for an unknown name, a number out of range, or a field that is not used.
    """

    name: str = "none"
    scale: float | None = None
    interval: tuple = (0.0, 1.0)
    run: str = ""

    def __post_init__(self) -> None:
        require_choice("name", self.name, GUIDANCES)
        row = GUIDANCES[self.name]
        if row is None and self.scale is not None:
            methods = " or ".join(name for name, row in GUIDANCES.items() if row is not None)
            raise ValueError(f"scale={self.scale} is not used with name='none'; choose {methods}")
        require_in("scale", self.scale, "[0, inf)")
        require_interval("interval", self.interval)
        takes_interval = row is not None and row.takes_interval
        if not takes_interval and tuple(self.interval) != (0, 1):
            takers = (name for name, row in GUIDANCES.items() if row and row.takes_interval)
            raise ValueError(
                f"interval={self.interval} is used with name={' or '.join(takers)}, not with "
                f"{self.name!r}"
            )
        takes_run = row is not None and row.needs == "bad_model"
        if takes_run and not self.run:
            raise ValueError(
                f"run='' names no bad model for name={self.name!r}; give another run, as RUN or "
                "RUN:STEP, or an earlier step of this one, as :STEP"
            )
        if self.run and not takes_run:
            users = (name for name, row in GUIDANCES.items() if row and row.needs == "bad_model")
            raise ValueError(
                f"run={self.run!r} is used with name={' or '.join(users)}, not with {self.name!r}"
            )

    @property
    def method(self) -> GuidanceMethod | None:
        """The row of GUIDANCES; None where the scale makes it no guidance."""
        row = GUIDANCES[self.name]
        return None if row is None or self.resolved_scale == row.neutral_scale else row

    @property
    def needs(self) -> str:
        """The second model that the method uses, as in `GuidanceMethod`."""
        return "" if self.method is None else self.method.needs

    @property
    def times(self) -> tuple[float, float]:
        """The interval as floats."""
        first, last = self.interval
        return float(first), float(last)

    @property
    def resolved_scale(self) -> float:
        """The scale, or the method's default."""
        row = GUIDANCES[self.name]
        default = 1.0 if row is None else row.default_scale
        return default if self.scale is None else self.scale

    @property
    def evaluations(self) -> int:
        """Network evaluations per prediction."""
        return 1 if self.method is None else self.method.evaluations
