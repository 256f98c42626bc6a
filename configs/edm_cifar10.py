"""EDM on CIFAR-10, Karras et al. 2022 (arXiv:2206.00364).

python main.py --config=configs/edm_cifar10.py --mode=train
python main.py --config=configs/edm_cifar10.py --mode=import --source=FILE --workdir=runs/edm
python main.py --config=configs/edm_cifar10.py --mode=sample --workdir=runs/edm

    variant              file edm-cifar10-32x32-   parameters   FID
    ddpmpp               uncond-vp                      55.7M   1.97   (the default)
    ddpmpp_conditional   cond-vp                        55.7M   1.79
    ncsnpp               uncond-ve                      56.4M   1.98
    ncsnpp_conditional   cond-ve                        56.4M   1.79

Training is the published one: `edm_training` below has its fields, docs/recipes.md its figures.
FILE is a state dict made from EDM's pickle, which is code (`published/edm.py` explains how). The
figures are those published, with EDM's sampler and 35 network evaluations; none was measured with
this code.
"""

import math

from ml_collections import ConfigDict

from configs import _song2021

VARIANTS = ("ddpmpp", "ddpmpp_conditional", "ncsnpp", "ncsnpp_conditional")


def get_config(variant: str = "ddpmpp") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    config = _song2021.cifar10()
    network, _, conditional = variant.partition("_")
    edm_process(config, steps=18)
    edm_network(config, network, multipliers=(2, 2, 2), dropout=0.13)
    edm_training(config, lr=1e-3, batch_size=512, augmentation=0.12)
    if conditional:
        config.model.num_classes = 10
    return config


def edm_process(config: ConfigDict, *, steps: int) -> None:
    """Set EDM's noise, sigma 0.002 to 80 on [-1, 1], its preconditioning, and its sampler."""
    config.sde.name = "edm"
    config.sde.sigma_max = 80.0
    config.denoiser.parameterization = "edm"
    config.denoiser.conditioning = "edm"
    config.sampling.name = "heun"
    config.sampling.grid = "karras"
    config.sampling.t_min = 0.002 / 80
    config.sampling.steps = steps - 1
    config.sampling.final_step = "denoise"  # EDM's last step
    config.sampling.churn_all_levels = True


def edm_network(
    config: ConfigDict, network: str, *, multipliers: tuple[int, ...], dropout: float
) -> None:
    """Set EDM's DDPM++ or NCSN++."""
    if network == "ncsnpp":
        _song2021.ncsnpp(config)
        config.model.embedding = "fourier"
    else:
        _song2021.ddpmpp(config)
    config.model.channel_multipliers = multipliers
    config.model.dropout = dropout


def edm_training(
    config: ConfigDict,
    *,
    lr: float,
    batch_size: int,
    augmentation: float,
    images: float = 200e6,
    half_life_images: float = 0.5e6,
    hardware: str = "8 V100",
) -> None:
    """Set EDM's objective, augmentation, optimizer and average; it sees `images` in all."""
    config.times.name = "log_normal"
    config.times.mean = -1.2
    config.times.std = 1.2
    config.weight.name = "edm"
    config.loss.reduction = "sum"
    if augmentation:
        config.augmentation.probability = augmentation
        config.model.augment_labels = 9
    config.data.random_flip = False  # flips are part of the augmentation, with a label
    config.optim.lr = lr
    config.optim.warmup_images = 10e6
    config.optim.grad_clip = 0.0
    config.ema.half_life_images = half_life_images
    config.ema.ramp_up = 0.05
    config.training.label_dropout = 0.0
    _song2021.published_batch(config, batch_size, hardware)
    config.training.steps = math.ceil(images / batch_size)
