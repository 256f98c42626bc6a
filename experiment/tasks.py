"""Tasks of `--mode=sample`: inverse problems, editing, latents.

A task is a row of TASKS: the classes of its options, which are the fields of config.task. An
inverse problem draws from p(x | y) for a measurement y = A x + noise; its last class has A.
"""

import abc
from dataclasses import dataclass

from jaxtyping import Array, Float

from data.pictures import read_mask
from denoising import Guidance
from errors import SEEDS, require_choice, require_in
from guidance import operators
from guidance.operators import LinearOperator
from guidance.posterior import DPS, PiGDM
from guidance.projection import Projection

Shape = tuple[int, int, int]
METHODS = ("projection", "pigdm", "dps")


@dataclass(frozen=True, kw_only=True)
class Input:
    r"""The input images of a task.

    Args:
        input: files of images or arrays (.npy, .npz), separated by commas; "test" for the test
            images of the data, "test:3" for one of them, "test:0-7" for several. A comma in a
            file's name is written as \,.

    Raises:
        ValueError: if it is empty.
    """

    input: str = ""

    def __post_init__(self) -> None:
        if not self.input:
            raise ValueError(
                "input='' names no image; give image files, or test:0-7 for test images of the data"
            )


@dataclass(frozen=True, kw_only=True)
class InverseProblem:
    """How samples are drawn that agree with a measurement y = A x + noise.

    Args:
        input_is_measurement: whether the input is y itself; otherwise it is an image to measure.
        method: how p(x | y) is approximated: "projection" replaces known components between the
            steps, "pigdm" and "dps" are guidances.
        noise: standard deviation of y's noise, for images in [0, 1].
        strength: strength of "projection", in (0, 1]; by default 1.
        data_std: spread of the data for "pigdm", in the network's range; by default 1.
        guidance_scale: scale of "pigdm" and "dps"; by default 1.

    Raises:
        ValueError: for an unknown name, a number out of range, or a field that the method ignores.
    """

    input_is_measurement: bool = False
    method: str = "pigdm"
    noise: float = 0.0
    strength: float | None = None
    data_std: float | None = None
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        require_choice("method", self.method, METHODS)
        require_in("noise", self.noise, "[0, inf)")
        for name, methods, interval in (
            ("strength", ("projection",), "(0, 1]"),
            ("data_std", ("pigdm",), "(0, inf)"),
            ("guidance_scale", ("pigdm", "dps"), "(0, inf)"),
        ):
            value = getattr(self, name)
            if value is not None and self.method not in methods:
                raise ValueError(
                    f"{name}={value} is used with method={' or '.join(methods)}, not with "
                    f"{self.method!r}"
                )
            require_in(name, value, interval)
        if self.method == "projection" and self.noise and self.strength is None:
            raise ValueError(
                f"noise={self.noise} would be copied into the samples by method='projection'; "
                "choose pigdm, or give a strength below 1"
            )

    def guidance(
        self, operator: LinearOperator, measurement: Float[Array, "batch ..."], noise: float
    ) -> Guidance | None:
        """Return the guidance toward a measurement; `noise` is in the network's range."""
        known = {"operator": operator, "measurement": measurement, "noise": noise}
        scale = self.guidance_scale or 1.0
        if self.method == "pigdm":
            return PiGDM(**known, scale=scale, data_std=self.data_std or 1.0)
        return DPS(**known, scale=scale) if self.method == "dps" else None

    def projection(
        self, operator: LinearOperator, measurement: Float[Array, "batch ..."]
    ) -> Projection | None:
        """Return the projection onto a measurement, if that is the method."""
        if self.method != "projection":
            return None
        strength = self.strength or 1.0
        return Projection(operator=operator, measurement=measurement, strength=strength)


class Action:
    """What a task does with its input.

    Attributes:
        encodes: whether it starts from rows of config.data and draws no samples.
        translates: whether it maps rows of one data set to another.
        upsamples: whether it gives small images to an upsampler.
        interpolates: whether its samples lie between two images.
        start: the time up to which it adds noise to the input; 1 if it starts from the prior.
    """

    encodes: bool = False
    translates: bool = False
    upsamples: bool = False
    interpolates: bool = False
    start: float = 1.0


class Measurement(Action, abc.ABC):
    """What is measured in an inverse problem.

    Attributes:
        keeps_range: whether measurements of images in [0, 1] lie in [0, 1].
        can_project: whether the pseudo-inverse is stable enough for method="projection".
    """

    keeps_range = True
    can_project = True

    @abc.abstractmethod
    def operator(self, shape: Shape) -> LinearOperator:
        """Return A for images of a shape."""

    def unit(self, shape: Shape) -> float:
        """Return the size in y of 1 in the measurements that users give."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Inpaint(Measurement):
    """Find the pixels outside a mask.

    `mask` is a file, white where the image is known; or left, right, top, bottom, border, or random
    (half of the pixels).
    """

    mask: str = ""

    def operator(self, shape: Shape) -> LinearOperator:
        return operators.inpainting(shape, read_mask(self.mask, shape))


@dataclass(frozen=True, kw_only=True)
class Colorize(Measurement):
    """Find colors from gray levels, the means over the channels."""

    def operator(self, shape: Shape) -> LinearOperator:
        if shape[-1] == 1:
            raise ValueError("name='colorize' needs images of several channels, these have 1")
        return operators.colorization(shape)

    def unit(self, shape: Shape) -> float:
        # Users give means over the channels; A takes sums over sqrt(channels).
        return float(shape[-1] ** 0.5)


@dataclass(frozen=True, kw_only=True)
class SuperResolve(Measurement):
    """Find an image from one smaller by `factor`, its means over blocks of pixels."""

    factor: int = 2

    def operator(self, shape: Shape) -> LinearOperator:
        return operators.downsampling(shape, self.factor)


@dataclass(frozen=True, kw_only=True)
class Deblur(Measurement):
    """Find a sharp image from one blurred by a Gaussian of `blur_std` pixels."""

    blur_std: float = 1.0
    can_project = False

    def __post_init__(self) -> None:
        require_in("blur_std", self.blur_std, "(0, inf)")

    def operator(self, shape: Shape) -> LinearOperator:
        return operators.blur(shape, self.blur_std)


@dataclass(frozen=True, kw_only=True)
class CompressedSensing(Measurement):
    """Find an image from random measurements.

    `fraction` is the number of measurements per number in x; `measurement_seed` draws them.
    """

    fraction: float = 0.25
    measurement_seed: int = 0
    keeps_range = False

    def __post_init__(self) -> None:
        require_in("measurement_seed", self.measurement_seed, SEEDS)

    def operator(self, shape: Shape) -> LinearOperator:
        return operators.compressed_sensing(shape, self.fraction, self.measurement_seed)


@dataclass(frozen=True, kw_only=True)
class MRI(Measurement):
    """Find an image from one in `acceleration` columns of its Fourier transform.

    The lowest frequencies are among them; `measurement_seed` draws the others.
    """

    acceleration: float = 2.0
    measurement_seed: int = 0
    keeps_range = False

    def __post_init__(self) -> None:
        require_in("measurement_seed", self.measurement_seed, SEEDS)

    def operator(self, shape: Shape) -> LinearOperator:
        mask = operators.cartesian_mask(shape, self.acceleration, seed=self.measurement_seed)
        return operators.fourier(shape, mask)


@dataclass(frozen=True, kw_only=True)
class SDEdit(Action):
    """Repaint an image from the noise level of a time `start` below 1 (arXiv:2108.01073)."""

    start: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.start < 1:
            raise ValueError(
                f"start={self.start}: sdedit adds noise to the input up to a time below 1, such as "
                "config.task.start=0.5"
            )


@dataclass(frozen=True, kw_only=True)
class Upsample(Action):
    """Draw large images of small ones, by a network that was trained for it."""

    upsamples = True


@dataclass(frozen=True, kw_only=True)
class Translate(Action):
    """Map rows of one data set to the other, of a run with two; see docs/bridges.md.

    Args:
        direction: "to_data", from config.coupling to config.data, or "from_data", back.

    Raises:
        ValueError: for another direction.
    """

    direction: str = "to_data"
    translates = True

    def __post_init__(self) -> None:
        require_choice("direction", self.direction, ("to_data", "from_data"))

    @property
    def encodes(self) -> bool:
        """Whether it maps rows of config.data."""
        return self.direction == "from_data"


@dataclass(frozen=True, kw_only=True)
class Reconstruct(Action):
    """Encode images as latents and decode them again."""

    encodes = True


@dataclass(frozen=True, kw_only=True)
class Interpolate(Action):
    """Decode the latents between those of two images."""

    encodes = True
    interpolates = True


# name -> the classes of its options. Adding an inverse problem is one class and one row.
TASKS: dict[str, tuple[type, ...]] = {
    "generate": (),
    "inpaint": (Input, InverseProblem, Inpaint),
    "colorize": (Input, InverseProblem, Colorize),
    "super_resolve": (Input, InverseProblem, SuperResolve),
    "deblur": (Input, InverseProblem, Deblur),
    "compressed_sensing": (Input, InverseProblem, CompressedSensing),
    "mri": (Input, InverseProblem, MRI),
    "sdedit": (Input, SDEdit),
    "upsample": (Input, Upsample),
    "reconstruct": (Input, Reconstruct),
    "interpolate": (Input, Interpolate),
    "translate": (Input, Translate),
}


@dataclass(frozen=True, kw_only=True)
class Task:
    """A task and its options.

    Attributes:
        name: a name in TASKS, but "generate".
        input: the names of its input images.
        options: the object of its last class.
        inverse_problem: how to sample, for inverse problems.
        operator: their A.
    """

    name: str
    input: str
    options: Action
    inverse_problem: InverseProblem | None = None
    operator: LinearOperator | None = None
