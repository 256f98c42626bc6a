"""EDM on FFHQ at 64 pixels, Karras et al. 2022 (arXiv:2206.00364).

python main.py --config=configs/edm_ffhq_64.py --mode=train --config.data.name=FOLDER
python main.py --config=configs/edm_ffhq_64.py --mode=import --source=FILE --workdir=runs/edm
python main.py --config=configs/edm_ffhq_64.py --mode=sample --workdir=runs/edm

    variant   file edm-ffhq-64x64-uncond-   parameters   FID
    ddpmpp    vp                                 61.8M   2.39   (the default)
    ncsnpp    ve                                 62.8M   2.53

Training is the published one. FILE is a state dict made from EDM's pickle, which is code
(`published/edm.py` explains how). The figures are those published, with 79 network evaluations;
none was measured with this code.
"""

from ml_collections import ConfigDict

from configs import _song2021, edm_cifar10

VARIANTS = ("ddpmpp", "ncsnpp")


def get_config(variant: str = "ddpmpp") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    return edm_64("ffhq", variant, dropout=0.05)


def edm_64(name: str, variant: str, *, dropout: float) -> ConfigDict:
    """Return EDM's configuration for a data set at 64 pixels."""
    config = _song2021.large_images(name, 64)
    edm_cifar10.edm_process(config, steps=40)
    edm_cifar10.edm_network(config, variant, multipliers=(1, 2, 2, 2), dropout=dropout)
    edm_cifar10.edm_training(config, lr=2e-4, batch_size=256, augmentation=0.15)
    return config
