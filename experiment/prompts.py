"""What guidance by texts follows: config.guidance with name=text."""

from dataclasses import dataclass
from typing import NamedTuple

from jaxtyping import Array, Float

from errors import require_in
from guidance.perceptor import Cutouts, Perceptor
from guidance.text import Prompts, parse_prompts


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    r"""What guidance by texts follows, and how.

    Args:
        prompt: texts with weights, such as "a cat:1 | dog:-0.5", as in `guidance.text`.
        image_prompt: image files with weights, likewise.
        perceptor: the network that compares: the folder of a CLIP, or hf:NAME; "" for the run's
            own, of --mode=train_perceptor.
        cutouts: random cutouts that it sees of an image; 0 for the whole image.
        cutout_min: height of the smallest cutout over that of the image, in (0, 1].
        cutout_power: larger ones draw more small cutouts; 1 draws heights uniformly.
        through_network: whether the gradient goes through the network, or stops at the predicted
            image, which is faster and coarser.
        range_scale: factor of the mean square of what lies outside the data's range. It needs
            config.sampling.clip=none.
        variation_scale: factor of the mean square of the differences between neighboring pixels.

    Raises:
        ValueError: without a prompt, and for a wrong weight or a number out of range.
    """

    prompt: str = ""
    image_prompt: str = ""
    perceptor: str = ""
    cutouts: int = 0
    cutout_min: float = Cutouts.smallest
    cutout_power: float = Cutouts.power
    through_network: bool = True
    range_scale: float = 0.0
    variation_scale: float = 0.0

    def __post_init__(self) -> None:
        if not self.prompt.strip() and not self.image_prompt.strip():
            raise ValueError(
                "prompt='' is empty, and name='text' needs a text; give one such as "
                "config.guidance.prompt=seven, or an image by config.guidance.image_prompt=FILE"
            )
        if not any(weight for _, weight in (*self.texts, *self.images)):
            raise ValueError(
                f"prompt={self.prompt!r:.80} has weights of 0 alone; give one prompt another weight"
            )
        for name in ("range_scale", "variation_scale"):
            require_in(name, getattr(self, name), "[0, inf)")
        _ = self.parts

    def check(self, clip: str | None) -> None:
        """Raise ValueError for a loss outside the range of images that are clipped to it."""
        if self.range_scale and clip not in (None, "none"):
            raise ValueError(
                f"range_scale={self.range_scale} has no effect with config.sampling.clip={clip!r}; "
                "set config.sampling.clip=none, or leave it out"
            )

    @property
    def texts(self) -> Prompts:
        """The texts and their weights."""
        return parse_prompts(self.prompt, "prompt") if self.prompt.strip() else ()

    @property
    def images(self) -> Prompts:
        """The names of image files and their weights."""
        if not self.image_prompt.strip():
            return ()
        return parse_prompts(self.image_prompt, "image_prompt")

    @property
    def parts(self) -> Cutouts:
        """The parts of an image that the perceptor sees."""
        return Cutouts(count=self.cutouts, smallest=self.cutout_min, power=self.cutout_power)


class Prompted(NamedTuple):
    """A perceptor, and the vectors and weights of the prompts."""

    perceptor: Perceptor
    targets: Float[Array, "prompts embedding"]
    weights: Float[Array, "prompts"]
