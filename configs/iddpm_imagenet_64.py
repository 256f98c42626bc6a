"""Improved DDPM on ImageNet 64x64, Nichol and Dhariwal 2021 (arXiv:2102.09672).

python main.py --config=configs/iddpm_imagenet_64.py --mode=train
python main.py --config=configs/iddpm_imagenet_64.py --mode=import --source=FILE --workdir=runs/in64
python main.py --config=configs/iddpm_imagenet_64.py --mode=sample --workdir=runs/in64

    variant         file                                  parameters   FID    bits/dim
    unconditional   imagenet64_uncond_100M_1500K.pt           121.1M   19.2   3.57   (the default)
    vlb             imagenet64_uncond_vlb_100M_1500K.pt       121.1M   40.1   3.53
    conditional     imagenet64_cond_270M_250K.pt              273.1M    2.92

`vlb` trains L_vlb at loss-aware times, the others L_hybrid. Training is the published one. The
figures are those published; none was measured with this code.
"""

from ml_collections import ConfigDict

from configs import _song2021, iddpm_cifar10

VARIANTS = ("unconditional", "vlb", "conditional")


def get_config(variant: str = "unconditional") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    config = _song2021.large_images("imagenet_resized/64x64", 64)
    conditional = variant == "conditional"
    features = 192 if conditional else 128
    iddpm_cifar10.iddpm(config, features=features, multipliers=(1, 2, 3, 4))
    if conditional:
        config.model.num_classes = 1000
        config.denoiser.conditioning = "timestep"
        iddpm_cifar10.iddpm_training(config, lr=3e-4, batch_size=2048, steps=250_000)
        # With --rescale_learned_sigmas False, the code adds the bound's mean over the timesteps.
        config.loss.coefficient = 1 / 4000
    else:
        iddpm_cifar10.iddpm_training(config, lr=1e-4, batch_size=128, steps=1_500_000)
    if variant == "vlb":
        iddpm_cifar10.iddpm_bound(config)
    return config
