"""Sub-VP SDE on CIFAR-10, Song et al. 2021 (arXiv:2011.13456).

python main.py --config=configs/subvp_cifar10.py --mode=train

    variant              parameters   FID    FID (ODE)   bits/dim   IS
    ddpm_continuous           35.2M               3.56       3.05
    ddpmpp_continuous         61.8M   2.61        3.16       3.02   9.56   (the default)
    ddpmpp_deep              106.6M   2.41        2.92       2.99   9.57
    ncsnpp_continuous         62.7M
    ncsnpp_deep              107.5M

The figures are those published; none was measured with this code.
"""

from ml_collections import ConfigDict

from configs import _song2021, vp_cifar10

VARIANTS = (
    "ddpm_continuous",
    "ddpmpp_continuous",
    "ddpmpp_deep",
    "ncsnpp_continuous",
    "ncsnpp_deep",
)


def get_config(variant: str = "ddpmpp_continuous") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    config = vp_cifar10.get_config(variant)
    config.sde.name = "subvp"
    return config
