"""Published networks of Improved DDPM on ImageNet 64x64, Nichol and Dhariwal 2021 (2102.09672).

python main.py --config=configs/iddpm_imagenet_64.py --mode=import --source=FILE --workdir=runs/in64
python main.py --config=configs/iddpm_imagenet_64.py --mode=sample --workdir=runs/in64

    variant         file such as                        parameters   FID
    unconditional   imagenet64_uncond_100M_1500K.pt         121.1M   19.2   (the default)
    conditional     imagenet64_cond_270M_250K.pt            273.1M    2.92

The figures are those published; none was measured with this code, and the objectives of the
paper are not implemented yet.
"""

from ml_collections import ConfigDict

from configs import _song2021, iddpm_cifar10

VARIANTS = ("unconditional", "conditional")


def get_config(variant: str = "unconditional") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    config = _song2021.large_images("imagenet_resized/64x64", 64)
    conditional = variant == "conditional"
    features = 192 if conditional else 128
    iddpm_cifar10.iddpm(config, features=features, multipliers=(1, 2, 3, 4))
    if conditional:
        config.model.num_classes = 1000
        config.denoiser.conditioning = "timestep"
    return config
