"""The perceptor of a run, config.perceptor: a small CLIP of its images and their classes' words."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from jaxtyping import Int32

from errors import ConfigError, require_in
from experiment.data import Data
from experiment.options import PartOptions
from guidance.perceptor import STANDARDIZATION, Cutouts
from models.clip import CLIP, TowerSize
from published.clip_tokenizer import Tables, Tokenizer, tables_of_words
from training.step import Trainer

# The words for classes without names; other languages and more classes need class_names.
_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
_PLACE = "{}"


@dataclass(frozen=True, kw_only=True)
class PerceptorOptions(PartOptions):
    """A perceptor, and how it is trained: see `PartOptions`.

    Args:
        class_names: the words for each class, alternatives as "seven|7"; None for the names that
            the data have, or else the numbers from zero on.
        captions: sentences about an image, with {} in the place of the word for its class.
        features: numbers of a token, a multiple of `heads`.
        depth: number of blocks of either tower.
        heads: attention heads of a block.
        patch_size: pixels; it divides the height of the images.
        embedding: length of the vectors.
        context_length: largest number of tokens of a text, with its start and end.
        cutout_min: height of the smallest cutout over that of the image, in (0, 1].
        noise: largest standard deviation of the images' noise, for images in [0, 1].

    Raises:
        ValueError: for a number out of range, or captions without {}.
    """

    class_names: tuple[str, ...] | None = None
    captions: tuple[str, ...] = field(default=(_PLACE,))
    features: int = 64
    depth: int = 2
    heads: int = 4
    patch_size: int = 2
    embedding: int = 32
    context_length: int = 16
    cutout_min: float = Cutouts.smallest
    noise: float = 0.5
    warmup: int = 100
    steps: int = 1200

    def __post_init__(self) -> None:
        names = self.class_names
        if names is not None and not (names and all(isinstance(name, str) for name in names)):
            raise ValueError(
                f"class_names={names!r:.80} must be the words for each class, such as "
                "('zero|0', 'one|1')"
            )
        if not self.captions or not all(_PLACE in str(text) for text in self.captions):
            raise ValueError(
                f"captions={self.captions!r:.80} must each have {_PLACE} for the class, "
                f"such as ('{_PLACE}', 'a {_PLACE}')"
            )
        require_in("context_length", self.context_length, "[3, 1048576]")
        require_in("cutout_min", self.cutout_min, "(0, 1]")
        require_in("noise", self.noise, "[0, inf)")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class PerceptorModel:
    """A perceptor of some data. What depends on their classes is made when it is first used.

    Attributes:
        options: how it is trained.
        data: the images.
        make_trainer: makes `trainer`.
    """

    options: PerceptorOptions
    data: Data
    make_trainer: "Callable[[PerceptorModel], Trainer]"

    def check(self, data: Data) -> None:
        """Raise ConfigError unless it suits the images, their labels and the devices.

        This waits until a perceptor is trained, so that its limits bind nobody else.
        """
        data.kind.require_images("--mode=train_perceptor", "points and series have no words")
        height, width, channels = data.shape
        try:
            if height != width or channels not in (1, 3):
                raise ValueError(f"it is for square images of 1 or 3 channels, not {data.shape}")
            data.parallel.check_batch(self.options.batch_size, "batch_size")
            self.network.validate()
            _ = self.tokens
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"config.perceptor: {error}") from error

    @cached_property
    def captions(self) -> list[list[str]]:
        """The captions of each class.

        Raises:
            ConfigError: for data without labels, or with other classes.
        """
        labels, name = self.data.splits.train_labels, self.data.options.name
        if labels is None:
            raise ConfigError(
                f"--mode=train_perceptor: config.data.name={name!r} has no labels, and words "
                "belong to classes; give data with labels, or a CLIP by config.guidance.perceptor"
            )
        names = self.options.class_names or self.data.splits.class_names
        numbers = tuple(f"{word}|{i}" for i, word in enumerate(_NUMBERS))
        names, count = names or numbers[: labels.max() + 1], int(labels.max()) + 1
        if len(names) != count or labels.min() < 0:
            raise ConfigError(
                f"config.perceptor.class_names={names!r:.60} are {len(names)}, and the classes of "
                f"config.data.name={name!r} are {labels.min()}..{labels.max()}; name each of them"
            )
        words = [[word.strip() for word in each.split("|") if word.strip()] for each in names]
        if not all(words):
            raise ConfigError("config.perceptor.class_names has an empty name; name each class")
        templates = self.options.captions
        return [[text.replace(_PLACE, w) for w in each for text in templates] for each in words]

    @cached_property
    def tables(self) -> Tables:
        """The vocabulary and the merges of the captions."""
        return tables_of_words(caption for each in self.captions for caption in each)

    @cached_property
    def tokens(self) -> Int32[np.ndarray, "classes captions length"]:
        """The tokens of the captions; a class with fewer ones has some twice."""
        tokenizer = Tokenizer(*self.tables, self.options.context_length)
        most = max(map(len, self.captions))
        rows = [[each[i % len(each)] for i in range(most)] for each in self.captions]
        return np.stack([tokenizer.encode(row) for row in rows])

    @cached_property
    def network(self) -> CLIP:
        """The network."""
        options, vocabulary = self.options, len(self.tables[0])
        size = TowerSize(
            features=options.features,
            depth=options.depth,
            heads=options.heads,
            hidden=4 * options.features,
        )
        return CLIP(
            image_size=self.data.shape[0],
            patch_size=options.patch_size,
            channels=self.data.shape[-1],
            vision=size,
            text=size,
            vocabulary=vocabulary,
            context_length=options.context_length,
            end_token=vocabulary - 1,
            embedding=options.embedding,
        )

    @property
    def standardization(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel of images in [0, 1]."""
        mean, std = ((value,) * self.data.shape[-1] for value in STANDARDIZATION)
        return mean, std

    @cached_property
    def trainer(self) -> Trainer:
        """What makes its training states."""
        return self.make_trainer(self)
