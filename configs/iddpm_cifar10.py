"""Improved DDPM on CIFAR-10, Nichol and Dhariwal 2021 (arXiv:2102.09672).

python main.py --config=configs/iddpm_cifar10.py --mode=train
python main.py --config=configs/iddpm_cifar10.py --mode=import --source=FILE --workdir=runs/iddpm
python main.py --config=configs/iddpm_cifar10.py --mode=sample --workdir=runs/iddpm

    variant   file                             objective                FID     bits/dim
    hybrid    cifar10_uncond_50M_500K.pt       L_hybrid                  3.19   3.17   (default)
    vlb       cifar10_uncond_vlb_50M_500K.pt   L_vlb, loss-aware times  11.47   2.94

Both have 52.5M parameters and 4000 timesteps of the cosine schedule. Training is the published one.
The figures are those published; none was measured with this code.
"""

from ml_collections import ConfigDict

from configs import _song2021, adm_imagenet

VARIANTS = ("hybrid", "vlb")


def get_config(variant: str = "hybrid") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    config = _song2021.cifar10()
    iddpm(config, features=128, multipliers=(1, 2, 2, 2))
    config.model.dropout = 0.3
    iddpm_training(config, lr=1e-4, batch_size=128, steps=500_000)
    if variant == "vlb":
        iddpm_bound(config)
    return config


def iddpm_training(config: ConfigDict, *, lr: float, batch_size: int, steps: int) -> None:
    """Set Improved DDPM's training, which is ADM's without mirrored images."""
    adm_imagenet.adm_training(config, lr=lr, batch_size=batch_size, steps=steps)
    config.data.random_flip = False


def iddpm_bound(config: ConfigDict) -> None:
    """Train the bound alone, at timesteps chosen by their losses."""
    config.loss.name = "vlb"
    config.loss.variance = "learned"
    config.times.name = "loss_aware"


def iddpm(config: ConfigDict, *, features: int, multipliers: tuple[int, ...]) -> None:
    """Set the network of Improved DDPM, and a chain of 4000 timesteps."""
    adm_imagenet.adm(config, features=features, multipliers=multipliers, blocks=3)
    config.model.attention_resolutions = (16, 8)
    config.model.heads = 4
    config.model.resample = "conv"
    adm_imagenet.adm_process(config, schedule="cosine")
    config.sde.num_timesteps = 4000
    config.times.num_timesteps = 4000
    config.denoiser.num_timesteps = 4000
    config.denoiser.conditioning = "rescaled_timestep"
    config.sampling.steps = 4000
