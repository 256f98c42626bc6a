"""DDPM's chain and network on CelebA-HQ at 256 pixels, Song et al. 2021 (arXiv:2011.13456).

python main.py --config=configs/vp_celebahq_256.py --mode=train --config.data.name=FOLDER

111.6M parameters. No figures were published, and none was measured with this code. FOLDER holds the
images. Repaired: the published file refers to records of another size.
"""

from ml_collections import ConfigDict

from configs import _song2021


def get_config() -> ConfigDict:
    config = _song2021.large_images("celebahq", 256)
    _song2021.vp_discrete(config)
    _song2021.ddpm(config, multipliers=(1, 1, 2, 2, 4, 4))
    config.optim.lr = 2e-5
    return config
