"""Published networks of Improved DDPM on CIFAR-10, Nichol and Dhariwal 2021 (arXiv:2102.09672).

python main.py --config=configs/iddpm_cifar10.py --mode=import --source=FILE --workdir=runs/iddpm
python main.py --config=configs/iddpm_cifar10.py --mode=sample --workdir=runs/iddpm

FILE is, for example, cifar10_uncond_50M_500K.pt, with 52.5M parameters and 4000 timesteps of the
cosine schedule. Published are FID 3.19 and 3.17 bits/dim with the hybrid objective, and 2.94
bits/dim with the bound as the objective. None was measured with this code, and neither objective is
implemented yet.
"""

from ml_collections import ConfigDict

from configs import _song2021, adm_imagenet


def get_config() -> ConfigDict:
    config = _song2021.cifar10()
    iddpm(config, features=128, multipliers=(1, 2, 2, 2))
    config.model.dropout = 0.3
    return config


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
