"""Options of a configuration that belong to no class of their own; each checks itself."""

from dataclasses import dataclass

from data.dequantization import DEQUANTIZATIONS
from data.fitting import RESIZES
from data.rows import GENERATORS, RANKS
from denoising import CONDITIONINGS
from errors import SEEDS, require_choice, require_in
from numerics.parameterizations import require_parameterization


def _require_all_in(options: object, interval: str, *names: str) -> None:
    for name in names:
        require_in(name, getattr(options, name), interval)


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """A data set of images and how they reach the network.

    Args:
        kind: "images".
        name: a name of one of the kinds in `data.readers.READERS`.
        dir: folder of tensorflow-datasets; "" for its default.
        image_size: height and width in pixels.
        channels: 1 for gray images, 3 for color images.
        resize: what happens to images of another size, a name in `data.fitting.RESIZES`.
        centered: scale images to [-1, 1]; otherwise to [0, 1].
        random_flip: mirror half of the training images.
        dequantization: how gray levels become numbers, in training and for likelihoods; a name in
            `data.dequantization.DEQUANTIZATIONS`.
        memory_gb: 10^9 bytes of images up to which they are held in memory; None for the
            budget of `data.datasets.load`.
        workers: processes that read images of a larger set; 0 for threads.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    kind: str = "images"
    name: str = "digits"
    dir: str = ""
    image_size: int = 8
    channels: int = 1
    resize: str = "none"
    centered: bool = True
    random_flip: bool = False
    dequantization: str = "uniform"
    memory_gb: float | None = None
    workers: int = 0

    def __post_init__(self) -> None:
        _require_all_in(self, "[1, inf)", "image_size", "channels")
        _require_all_in(self, "[0, inf)", "memory_gb")
        _require_all_in(self, "[0, 64]", "workers")
        require_choice("resize", self.resize, RESIZES)
        require_choice("dequantization", self.dequantization, DEQUANTIZATIONS)


@dataclass(frozen=True, kw_only=True)
class RowOptions:
    """A data set of points or series; see `data.rows`.

    Args:
        kind: "points" or "series".
        name: `points:NAME` or `series:NAME` of `data.generators`, or the path of an .npz or .npy.
        samples: number of generated rows, of which a tenth is held out.
        seed: of the generated rows, and of which rows are held out.
        shape: (coordinates,) of a point or (length, channels) of a series; () for that of the data.
        mean, std: of each coordinate or channel, for the network to see mean 0 and standard
            deviation 1; () for those of the training rows.

    Raises:
        ValueError: for an unknown kind or a number out of range.
    """

    kind: str
    name: str = "points:swiss_roll"
    samples: int = 20_000
    seed: int = 0
    shape: tuple = ()
    mean: tuple = ()
    std: tuple = ()

    def __post_init__(self) -> None:
        require_choice("kind", self.kind, GENERATORS)
        require_in("samples", self.samples, "[20, inf)")
        require_in("seed", self.seed, SEEDS)
        if self.shape and len(self.shape) != RANKS[self.kind] - 1:
            raise ValueError(
                f"shape={self.shape} is no shape of {self.kind}; leave it out for that of the data"
            )


@dataclass(frozen=True, kw_only=True)
class DenoiserOptions:
    """How the network's output and time input are interpreted; see `denoising`.

    Args:
        parameterization: a name in PARAMETERIZATIONS.
        conditioning: a name in CONDITIONINGS.
        num_timesteps: number of timesteps that the conditionings with a timestep count.
        sigma_data: standard deviation of the data, for parameterizations "edm" and "consistency".
        sigma_min: noise level sigma / alpha of a sample, for parameterization "consistency".
        energy: take the gradient of the network's output for its output (`models.energy`).

    Raises:
        ValueError: for an unknown name, or an energy network with several outputs.
    """

    parameterization: str = "eps"
    conditioning: str = "timestep_999"
    num_timesteps: int = 1000
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    energy: bool = False

    def __post_init__(self) -> None:
        require_parameterization(
            self.parameterization, sigma_data=self.sigma_data, sigma_min=self.sigma_min
        )
        require_choice("conditioning", self.conditioning, CONDITIONINGS)
        require_in("num_timesteps", self.num_timesteps, "[2, inf)")
        if self.energy and self.parameterization in ("eps_learned_variance", "levels"):
            raise ValueError(
                "energy=True needs a network with one output, not the several of "
                f"config.denoiser.parameterization={self.parameterization!r}; choose eps, or set "
                "energy=False"
            )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """The length of training and what is written during it.

    Args:
        batch_size: images per step, over all devices.
        published_batch_size: the batch size of the configuration's published numbers; 0 for none.
        published_hardware: the devices of these numbers, such as "8 V100", or "V100" where only
            their kind is published; "" for none.
        steps: number of steps.
        accumulate: parts of a batch whose gradients are added up, to save memory.
        steps_per_call: steps that the device runs without waiting for Python.
        prefetch: batches, or groups of `steps_per_call`, made ahead by a thread; 0 for none.
        label_dropout: probability that a class-conditional network sees no class.
        log_every, checkpoint_every, sample_every: steps; sample_every=0 draws no samples.
        keep_checkpoints: number of checkpoints kept, the latest; 0 for all.
        sample_count: images in a sample grid.
        init_from: RUN or RUN:STEP, the folder of a run whose parameters a new run starts with.

    Raises:
        ValueError: for a number out of range, or more steps per call than from one log, checkpoint
            or sample to the next.
    """

    batch_size: int = 128
    published_batch_size: int = 0
    published_hardware: str = ""
    steps: int = 1000
    accumulate: int = 1
    steps_per_call: int = 1
    prefetch: int = 2
    label_dropout: float = 0.1
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    sample_every: int = 1000
    sample_count: int = 64
    init_from: str = ""

    def __post_init__(self) -> None:
        require_in("steps", self.steps, "[1, 2147483647]")  # counted in int32
        _require_all_in(self, "[1, inf)", "log_every", "checkpoint_every", "sample_count")
        _require_all_in(self, "[0, inf)", "keep_checkpoints", "sample_every")
        require_in("published_batch_size", self.published_batch_size, "[0, inf)")
        _require_all_in(self, "[1, inf)", "accumulate", "steps_per_call")
        require_in("prefetch", self.prefetch, "[0, 1000]")
        require_in("label_dropout", self.label_dropout, "[0, 1)")
        for name in ("log_every", "checkpoint_every"):
            self.require_calls_within(f"config.training.{name}", getattr(self, name))
        name = "config.training.sample_every"
        self.require_calls_within(name, self.sample_every, ", or set it to 0")

    def require_calls_within(self, field: str, every: int, remedy: str = "") -> None:
        """Raise ValueError for a call of more steps than from one due step to the next.

        Args:
            field: the field that says how often something is due.
            every: its value; 0 for never.
            remedy: another remedy than to raise it.
        """
        if 0 < every < self.steps_per_call:
            raise ValueError(
                f"config.training.steps_per_call={self.steps_per_call} is more than {field}="
                f"{every}, and no call goes past such a step; lower "
                f"config.training.steps_per_call, raise {field}{remedy}"
            )


@dataclass(frozen=True, kw_only=True)
class DiagnosticsOptions:
    """What is measured during training, and how often; see `jobs.diagnostics`.

    Args:
        every: steps between measurements, of which the last step has one too; 0 for none.
        metrics: names in `jobs.diagnostics.DIAGNOSTICS`.
        images: test images, and as many training images; 0 for 256. All test images if there are
            fewer.
        levels: number of noise levels, equally long in log-SNR.
        samples: samples for the Frechet distance.
        sampling_steps: steps of their sampler, UniPC.
        features: features of the Frechet distance, a name in `evaluation.features.FEATURES`.

    Raises:
        ValueError: for a number out of range.
    """

    every: int = 1000
    metrics: tuple = ("loss", "noise_levels", "bits_per_dim", "frechet", "weights")
    images: int = 0
    levels: int = 16
    samples: int = 128
    sampling_steps: int = 10
    features: str = "thumbnails"

    def __post_init__(self) -> None:
        require_in("every", self.every, "[0, inf)")
        require_in("images", self.images, "[0, inf)")
        if self.images == 1:
            raise ValueError("images=1 has no standard error; give at least 2, or 0 for 256")
        require_in("levels", self.levels, "[2, inf)")
        require_in("samples", self.samples, "[5, inf)")
        require_in("sampling_steps", self.sampling_steps, "[4, inf)")


@dataclass(frozen=True, kw_only=True)
class LoggingOptions:
    """Where the log of a training run goes, beside metrics.jsonl and TensorBoard.

    Args:
        wandb: a project of Weights & Biases; "" for none.
    """

    wandb: str = ""


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """The randomness and the classes of samples.

    Args:
        seed: sample k depends on the seed and k alone.
        label: class of every sample; -1 cycles through all classes.
        labels: classes of the samples in turn, instead of `label`.

    Raises:
        ValueError: for a negative seed, or both a label and labels.
    """

    seed: int = 0
    label: int = -1
    labels: tuple = ()

    def __post_init__(self) -> None:
        require_in("seed", self.seed, SEEDS)
        if not all(type(label) is int for label in self.labels):
            raise ValueError(f"labels={self.labels} must be integers")
        if self.labels and self.label != -1:
            raise ValueError(f"labels={self.labels} and label={self.label}: give one of the two")

    @property
    def cycles(self) -> bool:
        """Whether the samples cycle through all classes."""
        return self.label < 0 and not self.labels

    def check(self, *, classes: int, null_label: int | None, owner: str) -> None:
        """Raise ValueError for a label that is no class.

        Args:
            classes: number of classes; 0 if samples have none.
            null_label: the label of no class, where samples may have it.
            owner: the configuration field that states the number of classes.
        """
        valid = [f"0..{classes - 1}"] if classes else []
        null = [] if null_label is None else [f"{null_label} (no class)"]
        largest = classes - 1 if null_label is None else null_label
        for field, labels in (("label", (self.label,)), ("labels", self.labels)):
            cycles = ["-1 (all in turn)"] if field == "label" else []
            for label in labels:
                if not 0 <= label <= largest and not (cycles and label == -1):
                    raise ValueError(
                        f"{field}={getattr(self, field)!r} is not a class with {owner}={classes}; "
                        f"valid: {' or '.join(valid + cycles + null) or 'nothing'}"
                    )


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """What `--mode=eval` computes, on how many images.

    Args:
        checkpoints: steps; () for the latest.
        metrics: names in `evaluation.metrics.METRICS`.
        batch_size: images per batch, over all devices.
        seed: seed of noise, trace probes and dequantization.
        loss_repeats: times and noises per test image.
        dequantizations: draws per test image.
        error_budget_images: test images on which solver error and truncation are measured.
        samples: images per sampling seed.
        sampling_seeds: number of seeds, from `config.sampling.seed` on.
        features: names in `evaluation.features.FEATURES`.
        reference: file of statistics to compare with; "" for those of the data.
        inception_weights: file of Inception's weights; "" for the one in the user's cache.
        inception_resize: a name in `metrics.inception.network.RECIPES`.

    Raises:
        ValueError: for a number out of range.
    """

    checkpoints: tuple = ()
    metrics: tuple = ("loss", "bits_per_dim", "frechet")
    batch_size: int = 128
    seed: int = 0
    loss_repeats: int = 10
    dequantizations: int = 5
    error_budget_images: int = 32
    samples: int = 1500
    sampling_seeds: int = 1
    features: tuple = ("pixels",)
    reference: str = ""
    inception_weights: str = ""
    inception_resize: str = "tf1"

    def __post_init__(self) -> None:
        _require_all_in(self, "[1, inf)", "loss_repeats", "dequantizations", "sampling_seeds")
        require_in("seed", self.seed, SEEDS)
        require_in("error_budget_images", self.error_budget_images, "[0, inf)")
        require_in("samples", self.samples, "[2, inf)")


@dataclass(frozen=True, kw_only=True)
class AnalyticDPMOptions:
    """How the second moments that Analytic-DPM needs are measured.

    Args:
        num_images: training images.
        num_times: noise levels; a chain is measured at all of its timesteps.

    Raises:
        ValueError: for less than 3 of either.
    """

    num_images: int = 1000
    num_times: int = 100

    def __post_init__(self) -> None:
        _require_all_in(self, "[3, inf)", "num_images", "num_times")


@dataclass(frozen=True, kw_only=True)
class PartOptions:
    """How a network beside the model is trained.

    Args:
        lr: learning rate after warm-up; it decays to 0 by a cosine.
        warmup: steps.
        batch_size: images, points or series per step, over all devices.
        steps: number of steps.

    Raises:
        ValueError: for a number out of range.
    """

    lr: float = 1e-3
    warmup: int = 50
    batch_size: int = 64
    steps: int = 1000

    def __post_init__(self) -> None:
        require_in("steps", self.steps, "[1, inf)")


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions(PartOptions):
    """The noise-conditional classifier, and how it is trained: see `PartOptions`.

    Args:
        conditioning: its time input, a name in `denoising.CONDITIONINGS`.
        num_timesteps: number of timesteps that the conditionings with a timestep count.
        scale_input: divide x_t by sqrt(alpha^2 + sigma^2); see `guidance.classifier`.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    conditioning: str = "timestep_999"
    num_timesteps: int = 1000
    scale_input: bool = True
    lr: float = 2e-3
    warmup: int = 100
    steps: int = 600

    def __post_init__(self) -> None:
        require_choice("conditioning", self.conditioning, CONDITIONINGS)
        require_in("num_timesteps", self.num_timesteps, "[2, inf)")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class VarianceHeadOptions(PartOptions):
    """The network of a variance head, and how it is trained: see `PartOptions`.

    Args:
        features: width of its network, which is otherwise that of the model; None for the model's.

    Raises:
        ValueError: for a number out of range.
    """

    features: int | None = None

    def __post_init__(self) -> None:
        _require_all_in(self, "[1, inf)", "features")
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class DequantizerOptions(PartOptions):
    """How the dequantizer of a run is trained."""
