"""Published networks of EDM on CIFAR-10, Karras et al. 2022 (arXiv:2206.00364).

python main.py --config=configs/edm_cifar10.py --mode=import --source=FILE --workdir=runs/edm
python main.py --config=configs/edm_cifar10.py --mode=sample --workdir=runs/edm

    variant              file edm-cifar10-32x32-   parameters   FID
    ddpmpp               uncond-vp                      55.7M   1.97   (the default)
    ddpmpp_conditional   cond-vp                        55.7M   1.79
    ncsnpp               uncond-ve                      56.4M
    ncsnpp_conditional   cond-ve                        56.4M

FILE is a state dict made from EDM's pickle, which is code (`published/edm.py` explains how). The
figures are those published, with EDM's sampler and 35 network evaluations; none was measured with
this code. EDM's distribution of noise levels in training is not implemented yet: training draws t
uniformly.
"""

from ml_collections import ConfigDict

from configs import _song2021

VARIANTS = ("ddpmpp", "ddpmpp_conditional", "ncsnpp", "ncsnpp_conditional")


def get_config(variant: str = "ddpmpp") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    config = _song2021.cifar10()
    network, _, conditional = variant.partition("_")
    edm_process(config, steps=18)
    edm_network(config, network, multipliers=(2, 2, 2), dropout=0.13)
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
