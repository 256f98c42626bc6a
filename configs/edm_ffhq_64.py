"""Published networks of EDM on FFHQ at 64 pixels, Karras et al. 2022 (arXiv:2206.00364).

python main.py --config=configs/edm_ffhq_64.py --mode=import --source=FILE --workdir=runs/edm
python main.py --config=configs/edm_ffhq_64.py --mode=sample --workdir=runs/edm

    variant   file edm-ffhq-64x64-uncond-   parameters
    ddpmpp    vp                                 61.8M   (the default)
    ncsnpp    ve                                 62.8M

FILE is a state dict made from EDM's pickle, which is code (`published/edm.py` explains how). The
files for AFHQv2 fit too. No figure was measured with this code. Sampling takes 79 network
evaluations, as published.
"""

from ml_collections import ConfigDict

from configs import _song2021, edm_cifar10

VARIANTS = ("ddpmpp", "ncsnpp")


def get_config(variant: str = "ddpmpp") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    config = _song2021.large_images("ffhq", 64)
    edm_cifar10.edm_process(config, steps=40)
    edm_cifar10.edm_network(config, variant, multipliers=(1, 2, 2, 2), dropout=0.05)
    return config
