"""Sub-VP SDE on CIFAR-10 with DDPM++ (continuous), Song et al. 2021 (arXiv:2011.13456).

Published: FID 2.61, IS 9.56, 3.02 bits/dim (ODE), 61.8M parameters, 1.3M steps of 128 images. Not
measured with this code.
"""

from ml_collections import ConfigDict

from configs import vp_cifar10


def get_config() -> ConfigDict:
    config = vp_cifar10.get_config()
    config.sde.name = "subvp"
    return config
