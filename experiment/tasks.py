"""What --mode=sample can be asked beside samples, by name: classes, restorations, edits.

A task is a few options that say what is known of an image; `condition` makes them a guidance or a
projection of the denoiser. Strings that name pictures are read in `pictures.py`; here, only a mask
is.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Array, Float

from data.pictures import read_mask
from denoising import Denoiser
from guidance import operators
from guidance.base import require_interval, guide
from guidance.operators import LinearOperator
from guidance.posterior import DPS, PiGDM
from guidance.projection import Projection

Shape = tuple[int, int, int]

GUIDANCES = ("none", "classifier", "classifier_free")


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    """Towards which classes samples are guided, and how much.

    Args:
      guidance: "none"; "classifier", the gradient of the run's classifier of noisy images;
        "classifier_free", of a class-conditional network against itself without a class.
      guidance_scale: by default 1 of a classifier, and 2 without.
      guidance_interval: the times between which a class-conditional network is exaggerated.
      labels: the class of each sample, in turn; none for what `label` says.

    Raises:
      ValueError: for an unknown name, or an option without use.
    """

    guidance: str = "none"
    guidance_scale: float | None = None
    guidance_interval: tuple = (0.0, 1.0)
    labels: tuple = ()

    def __post_init__(self) -> None:
        if self.guidance not in GUIDANCES:
            raise ValueError(
                f"guidance={self.guidance!r} is unknown; choose one of: {', '.join(GUIDANCES)}"
            )
        if self.guidance == "none" and self.guidance_scale is not None:
            raise ValueError(
                f"guidance_scale={self.guidance_scale} has no use with guidance='none'; choose "
                "classifier or classifier_free"
            )
        if self.guidance_scale is not None and not 0 <= self.guidance_scale < float("inf"):
            raise ValueError(f"guidance_scale={self.guidance_scale} must be finite, 0 or more")
        if not all(type(label) is int for label in self.labels):
            raise ValueError(f"labels={self.labels} must be whole numbers")
        require_interval("guidance_interval", self.guidance_interval)
        if self.guidance != "classifier_free" and tuple(self.guidance_interval) != (0, 1):
            raise ValueError(
                f"guidance_interval={self.guidance_interval} is of guidance='classifier_free' alone"
            )

    @property
    def scale(self) -> float:
        if self.guidance_scale is not None:
            return self.guidance_scale
        return 2.0 if self.guidance == "classifier_free" else 1.0


# --- tasks with a picture ---------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Input:
    """The pictures of a task.

    Args:
      input: files of images, or of arrays (.npy, .npz), separated by commas; test for the test
        images of the data, test:3 for one of them, test:0-7 for some.

    Raises:
      ValueError: without any.
    """

    input: str = ""

    def __post_init__(self) -> None:
        if not self.input:
            raise ValueError(
                "input='' names no picture; give files of images, or test:0-7 for test images of "
                "the data"
            )


POSTERIORS = ("projection", "pigdm", "dps")


@dataclass(frozen=True, kw_only=True)
class Restoration:
    """How samples are drawn that agree with a measurement y = A x + noise.

    Args:
      measured: whether the input is y itself; otherwise it is an image, which is measured.
      posterior: how p(x | y) is approximated: "projection" replaces what is known between the
        steps, "pigdm" and "dps" are guidances; see controllable_generation. A network's gradient
        is huge where there is hardly any signal: guidances clip to the data's range by default.
      noise: standard deviation of y's noise, for images (and grey levels) in [0, 1].
      strength: of "projection"; by default 1.
      data_std: of "pigdm", the spread of the data in the network's range; by default 1.
      restoration_scale: of "pigdm" and "dps"; by default 1.

    Raises:
      ValueError: for an unknown name, a number out of range, or an option without use.
    """

    measured: bool = False
    posterior: str = "pigdm"
    noise: float = 0.0
    strength: float | None = None
    data_std: float | None = None
    restoration_scale: float | None = None

    def __post_init__(self) -> None:
        if self.posterior not in POSTERIORS:
            raise ValueError(
                f"posterior={self.posterior!r} is unknown; choose one of: {', '.join(POSTERIORS)}"
            )
        if not 0 <= self.noise < float("inf"):
            raise ValueError(f"noise={self.noise} must be finite, 0 or more")
        owners = {
            "strength": ("projection",),
            "data_std": ("pigdm",),
            "restoration_scale": ("pigdm", "dps"),
        }
        for name, posteriors in owners.items():
            value = getattr(self, name)
            if value is not None and self.posterior not in posteriors:
                raise ValueError(
                    f"{name}={value} is of posterior={' or '.join(posteriors)}, not of "
                    f"{self.posterior!r}"
                )
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}={value} must be finite and above 0")
        if self.strength is not None and self.strength > 1:
            raise ValueError(f"strength={self.strength} must lie above 0, up to 1")
        if self.posterior == "projection" and self.noise and self.strength is None:
            raise ValueError(
                f"noise={self.noise} would be copied into the samples by posterior='projection'; "
                "choose pigdm, or give a strength below 1"
            )

    def condition(
        self,
        denoiser: Denoiser,
        operator: LinearOperator,
        measurement: Float[Array, "batch ..."],
        noise: float,
    ) -> Denoiser:
        """The denoiser of images with this measurement, whose noise is in the network's range."""
        known = {"operator": operator, "measurement": measurement}
        if self.posterior == "projection":
            projection = Projection(**known, strength=self.strength or 1.0)
            return dataclasses.replace(denoiser, projection=projection)
        known |= {"noise": noise, "scale": self.restoration_scale or 1.0}
        if self.posterior == "pigdm":
            return guide(denoiser, PiGDM(**known, data_std=self.data_std or 1.0))
        return guide(denoiser, DPS(**known))


@dataclass(frozen=True, kw_only=True)
class Inpaint:
    """Pixels outside a mask are found; `mask` is a file, white where the image is known, or left,
    right, top, bottom, border, or random (half of the pixels)."""

    mask: str = ""

    def operator(self, shape: Shape) -> LinearOperator:
        return operators.inpainting(shape, read_mask(self.mask, shape))


@dataclass(frozen=True, kw_only=True)
class Colorize:
    """Colours are found, from grey levels."""

    def operator(self, shape: Shape) -> LinearOperator:
        if shape[-1] == 1:
            raise ValueError("task='colorize' needs images of several channels, these have 1")
        return operators.colorization(shape)


@dataclass(frozen=True, kw_only=True)
class SuperResolve:
    """An image is found from one smaller by `factor`, its means over blocks of pixels."""

    factor: int = 2

    def operator(self, shape: Shape) -> LinearOperator:
        return operators.downsampling(shape, self.factor)


@dataclass(frozen=True, kw_only=True)
class Deblur:
    """A sharp image is found from one blurred by a Gaussian of `blur_std` pixels."""

    blur_std: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.blur_std < float("inf"):
            raise ValueError(f"blur_std={self.blur_std} must be finite and above 0")

    def operator(self, shape: Shape) -> LinearOperator:
        return operators.blur(shape, self.blur_std)


@dataclass(frozen=True, kw_only=True)
class CompressedSensing:
    """An image is found from a `fraction` of random measurements, which `measurement_seed` draws"""

    fraction: float = 0.25
    measurement_seed: int = 0

    def operator(self, shape: Shape) -> LinearOperator:
        return operators.compressed_sensing(shape, self.fraction, self.measurement_seed)


@dataclass(frozen=True, kw_only=True)
class MRI:
    """An image is found from columns of its Fourier transform, one in `acceleration`, as random as
    `measurement_seed` draws them beside the lowest."""

    acceleration: float = 2.0
    measurement_seed: int = 0

    def operator(self, shape: Shape) -> LinearOperator:
        mask = operators.cartesian_mask(shape, self.acceleration, seed=self.measurement_seed)
        return operators.fourier(shape, mask)


# name -> the classes of its options; of a restoration the last has the operator.
TASKS: dict[str, tuple[type, ...]] = {
    "generate": (),
    "inpaint": (Input, Restoration, Inpaint),
    "colorize": (Input, Restoration, Colorize),
    "super_resolve": (Input, Restoration, SuperResolve),
    "deblur": (Input, Restoration, Deblur),
    "compressed_sensing": (Input, Restoration, CompressedSensing),
    "mri": (Input, Restoration, MRI),
    "stroke": (Input,),
    "reconstruct": (Input,),
    "interpolate": (Input,),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is to be done with the pictures `input`; a restoration has an operator.

    `coder` has the two ways between images and latent codes, (denoiser, batch) -> batch, of a
    sampler that goes both ways.
    """

    name: str
    input: str
    restoration: Restoration | None = None
    operator: LinearOperator | None = None
    coder: tuple[Callable[..., Array], Callable[..., Array]] | None = None
