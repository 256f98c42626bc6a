"""Common parts of the published configurations of Song et al. 2021 (arXiv:2011.13456).

Variants have the names of the published files without the data set. The deep networks exist in
continuous time only, and have no suffix `_continuous`. Where a published file is broken, the header
of the configuration describes the repair.

Sampling takes exact transitions and denoises at the end. To sample as the published code does, add
`--config.sampling.discretization=published`.
"""

from collections.abc import Iterable

from ml_collections import ConfigDict

from configs import default


def check_variant(variant: str, variants: Iterable[str]) -> None:
    """Raise ValueError unless the variant, the part of --config after the colon, exists."""
    if variant not in variants:
        raise ValueError(f"variant {variant!r} is unknown; choose one of: {', '.join(variants)}")


def cifar10() -> ConfigDict:
    """Return CIFAR-10, 32x32 pixels, with 1.3M training steps of 128 images."""
    config = _images("cifar10", 32)
    config.model.dropout = 0.1
    _train(config, steps=1_300_000, batch_size=128, checkpoint_every=10_000, evaluate=1024)
    return config


def celeba() -> ConfigDict:
    """Return CelebA, 64x64 pixels, with 1.3M training steps of 128 images.

    The published code crops the central 140x140 pixels before resizing, ours the central square of
    178. To compare numbers, use an image folder or .npz with the published crop.
    """
    config = _images("celeb_a", 64)
    config.data.resize = "crop"
    config.model.dropout = 0.1
    _train(config, steps=1_300_000, batch_size=128, checkpoint_every=10_000, evaluate=1024)
    return config


def large_images(name: str, image_size: int, *, batch_size: int = 64) -> ConfigDict:
    """Return LSUN, FFHQ or CelebA-HQ, with 2.4M training steps and no dropout."""
    config = _images(name, image_size)
    config.data.resize = "crop"
    config.model.dropout = 0.0
    _train(config, steps=2_400_000, batch_size=batch_size, checkpoint_every=5_000, evaluate=512)
    return config


def _images(name: str, image_size: int) -> ConfigDict:
    config = default.get_config()
    config.data.name = name
    config.data.image_size = image_size
    config.data.channels = 3
    config.data.random_flip = True
    config.data.dequantization = "none"
    return config


def _train(
    config: ConfigDict, *, steps: int, batch_size: int, checkpoint_every: int, evaluate: int
) -> None:
    config.training.steps = steps
    published_batch(config, batch_size)
    config.training.checkpoint_every = checkpoint_every
    config.training.sample_every = 50_000
    config.eval.batch_size = evaluate
    config.eval.samples = 50_000
    config.eval.features = ("inception",)


def published_batch(config: ConfigDict, batch_size: int, hardware: str = "") -> None:
    """Set batch size and hardware of the published numbers; training reports others."""
    config.training.batch_size = batch_size
    config.training.published_batch_size = batch_size
    config.training.published_hardware = hardware


def vp(config: ConfigDict, *, name: str = "vp", predictor: str = "euler_maruyama") -> None:
    """Set VP or sub-VP in continuous time: noise prediction on [-1, 1]."""
    config.sde.name = name
    config.data.centered = True
    config.ema.rate = 0.9999
    config.sampling.predictor = predictor
    _end(config, evaluations=1000)


def _end(config: ConfigDict, *, evaluations: int) -> None:
    """Set the steps to t_min and the denoising there.

    The published sampler takes this many steps, of which the last starts at t_min, and returns its
    mean: it removes the noise. Denoising at t_min costs the same and removes all of it.
    """
    config.sampling.steps = evaluations - 1
    config.sampling.final_step = "denoise"


def vp_discrete(config: ConfigDict, *, predictor: str = "ancestral") -> None:
    """Set DDPM's chain of 1000 timesteps and its simple loss, sampled at every timestep."""
    vp(config, name="ddpm", predictor=predictor)
    config.times.name = "timesteps"
    _all_timesteps(config, 1000)
    config.sampling.variance = "large"
    config.discrete_bound.variance = "large"
    config.discrete_bound.clip = "range"
    # Song et al. computed bits/dim with the continuous SDE, as `vp` does; see DiscreteVPSDE.
    config.eval.metrics = ("loss", "discrete_bound", "frechet")


def _all_timesteps(config: ConfigDict, num_timesteps: int) -> None:
    """Set the steps along all timesteps of a chain; `_end` has set the denoising at the first."""
    config.sampling.grid = "timesteps"
    config.sampling.steps = num_timesteps


def ve(
    config: ConfigDict, *, sigma_max: float, snr: float, steps: int = 1000, ema: float = 0.999
) -> None:
    """Set VE in continuous time: sigma times the score on [0, 1], reverse diffusion, Langevin."""
    config.sde.name = "ve"
    config.sde.sigma_min = 0.01
    config.sde.sigma_max = sigma_max
    config.data.centered = False
    config.model.embedding = "fourier"
    config.denoiser.parameterization = "scaled_score"
    config.denoiser.conditioning = "log_sigma"
    config.loss.reduction = "half_sum"
    config.ema.rate = ema
    config.sampling.t_min = 1e-5
    config.sampling.predictor = "reverse_diffusion"
    config.sampling.corrector = "langevin"
    config.sampling.snr = snr
    _end(config, evaluations=steps)


def ve_discrete(
    config: ConfigDict,
    *,
    sigma_max: float,
    snr: float,
    num_timesteps: int = 1000,
    ema: float = 0.999,
) -> None:
    """Set SMLD's noise levels, whose index is the network's input; there is no likelihood."""
    ve(config, sigma_max=sigma_max, snr=snr, steps=num_timesteps, ema=ema)
    config.sde.name = "smld"
    config.sde.num_timesteps = num_timesteps
    config.model.embedding = "positional"
    config.denoiser.conditioning = "reversed_timestep"
    config.denoiser.num_timesteps = num_timesteps
    config.times.name = "timesteps"
    config.times.num_timesteps = num_timesteps
    _all_timesteps(config, num_timesteps)
    config.eval.metrics = ("loss", "frechet")


def annealed_langevin(
    config: ConfigDict,
    *,
    sigma_max: float,
    num_timesteps: int,
    corrector_steps: int,
    snr: float,
    lr: float,
    ema: float,
) -> None:
    """Set SMLD's noise levels, no warm-up or clipping, and annealed Langevin dynamics."""
    ve_discrete(config, sigma_max=sigma_max, snr=snr, num_timesteps=num_timesteps, ema=ema)
    config.optim.lr = lr
    config.optim.warmup = 0
    config.optim.grad_clip = 0.0
    config.sampling.predictor = "none"
    config.sampling.corrector = "annealed_langevin"
    config.sampling.corrector_steps = corrector_steps


def ddpm(config: ConfigDict, *, multipliers: tuple[int, ...] = (1, 2, 2, 2)) -> None:
    """Set the network of Ho et al. 2020."""
    config.model.name = "ddpm"
    config.model.features = 128
    config.model.channel_multipliers = multipliers
    config.model.blocks_per_resolution = 2
    config.model.attention_resolutions = (16,)
    config.model.embedding = "positional"


def ddpmpp(config: ConfigDict, *, blocks: int = 4) -> None:
    """Set DDPM++; the deep one has 8 blocks per resolution and shorter training."""
    config.model.name = "ncsnpp"
    config.model.features = 128
    config.model.channel_multipliers = (1, 2, 2, 2)
    config.model.blocks_per_resolution = blocks
    config.model.attention_resolutions = (16,)
    config.model.residual_block = "biggan"
    config.model.resample = "plain"
    config.model.progressive_input = "none"
    config.model.progressive_output = "none"
    if blocks == 8:
        config.training.steps = 950_000


def ncsnpp(config: ConfigDict, *, blocks: int = 4) -> None:
    """Set NCSN++: DDPM++ with FIR resampling and a residual progressive input."""
    ddpmpp(config, blocks=blocks)
    config.model.resample = "fir"
    config.model.progressive_input = "residual"


def ncsnpp_large(
    config: ConfigDict, *, features: int, multipliers: tuple[int, ...], blocks: int
) -> None:
    """Set NCSN++ for 256 and 1024 pixels: progressive skips at both ends."""
    ncsnpp(config, blocks=blocks)
    config.model.features = features
    config.model.channel_multipliers = multipliers
    config.model.progressive_input = "input_skip"
    config.model.progressive_output = "output_skip"


def ncsnpp_256(config: ConfigDict) -> None:
    """Set NCSN++ for 256 pixels."""
    ncsnpp_large(config, features=128, multipliers=(1, 1, 2, 2, 2, 2, 2), blocks=2)


def ncsnpp_1024(config: ConfigDict) -> None:
    """Set NCSN++ for 1024 pixels."""
    ncsnpp_large(config, features=16, multipliers=(1, 2, 4, 8, 16, 32, 32, 32), blocks=1)


def ncsn(config: ConfigDict) -> None:
    """Set NCSN v1 (Song and Ermon 2019), whose output is the score itself."""
    config.model.name = "ncsn"
    config.model.features = 128
    config.model.num_timesteps = config.denoiser.num_timesteps
    config.denoiser.parameterization = "score_centered_input"


def ncsnv2(config: ConfigDict, *, size: int = 64) -> None:
    """Set NCSNv2 (Song and Ermon 2020)."""
    config.model.name = "ncsnv2"
    config.model.features = 128
    config.model.size = size


def song_ermon(
    config: ConfigDict,
    variant: str,
    *,
    sigma_max: float,
    num_timesteps: int,
    corrector_steps: int,
    snr: float,
) -> None:
    """Set NCSNv2, or NCSN with some of NCSNv2's techniques, which the variant lists.

    Techniques 1, 2 and 4 have the given noise levels and Langevin steps; technique 5 is the moving
    average. Without techniques 1, 2 and 4, NCSN has 10 noise levels, sigma up to 1, and 100
    Langevin steps at each.
    """
    kind = variant.partition("_")[2]
    if variant in ("ncsn", "ncsn_5"):
        sigma_max, num_timesteps, corrector_steps, snr = 1.0, 10, 100, 0.316
    annealed_langevin(
        config,
        sigma_max=sigma_max,
        num_timesteps=num_timesteps,
        corrector_steps=corrector_steps,
        snr=snr,
        lr=1e-4 if variant == "ncsnv2" else 1e-3,
        ema=0.999 if variant == "ncsnv2" or kind.endswith("5") else 0.0,
    )
    if variant == "ncsnv2":
        ncsnv2(config)
    else:
        ncsn(config)
