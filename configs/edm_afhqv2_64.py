"""EDM on AFHQv2 at 64 pixels, Karras et al. 2022 (arXiv:2206.00364).

python main.py --config=configs/edm_afhqv2_64.py --mode=train --config.data.name=FOLDER
python main.py --config=configs/edm_afhqv2_64.py --mode=import --source=FILE --workdir=runs/edm
python main.py --config=configs/edm_afhqv2_64.py --mode=sample --workdir=runs/edm

    variant   file edm-afhqv2-64x64-uncond-   parameters   FID
    ddpmpp    vp                                   61.8M   1.96   (the default)
    ncsnpp    ve                                   62.8M   2.16

As configs/edm_ffhq_64.py, with more dropout.
"""

from ml_collections import ConfigDict

from configs import _song2021, edm_ffhq_64

VARIANTS = ("ddpmpp", "ncsnpp")


def get_config(variant: str = "ddpmpp") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    return edm_ffhq_64.edm_64("afhqv2", variant, dropout=0.25)
