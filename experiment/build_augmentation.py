"""Build the augmentation of training images that config.augmentation describes."""

from typing import Any

from errors import ConfigError
from experiment.kinds import Kind
from experiment.reader import Reader
from models import NETWORKS
from training.augmentation import LABELS, Augmentation


def build_augmentation(reader: Reader, network: Any, kind: Kind) -> Augmentation | None:
    """Return the augmentation of training images, None for none.

    Raises:
        ConfigError: for the first field that is wrong or not used, a network without an input for
            the labels, or images that are mirrored twice.
    """
    augmentation = reader.build("augmentation", Augmentation)
    if not augmentation.probability:
        _require_none_given(reader)
        return None
    what = f"config.augmentation.probability={augmentation.probability}"
    kind.require_images(what, "set it to 0")
    labels = getattr(network, "augment_labels", None)
    if labels != LABELS:
        name = reader.config["model"]["name"]
        able = [key for key, kind in NETWORKS.items() if hasattr(kind, "augment_labels")]
        raise ConfigError(
            f"{what} makes {LABELS} labels, "
            + (
                f"which config.model.name={name!r} does not take; choose {' or '.join(able)}"
                if labels is None
                else f"config.model.augment_labels={labels} takes {labels}; set it to {LABELS}"
            )
            + ", or config.augmentation.probability=0"
        )
    if augmentation.x_flip and reader.config["data"]["random_flip"]:
        raise ConfigError(
            f"{what} mirrors images and tells the network which, but config.data.random_flip=True "
            "mirrors them before, without a label; set config.data.random_flip=False, or "
            "config.augmentation.x_flip=False"
        )
    return augmentation


def _require_none_given(reader: Reader) -> None:
    """Raise ConfigError if the command line sets a strength of no augmentation."""
    given = sorted(name for name in reader.overrides if name.startswith("augmentation."))
    for name in given:
        if name != "augmentation.probability":
            raise ConfigError(
                f"config.{name} is not used with config.augmentation.probability=0; raise the "
                "probability, such as to 0.12, or leave it out"
            )
