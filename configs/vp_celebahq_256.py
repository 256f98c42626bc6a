"""DDPM's chain and network on CelebA-HQ at 256 pixels, Song et al. 2021 (arXiv:2011.13456).

python main.py --config=configs/vp_celebahq_256.py --mode=train --config.data.name=FOLDER

111.6M parameters. No figures were published, and none was measured with this code. FOLDER holds the
images. Repaired: the published file points to records of another size.
"""

from ml_collections import ConfigDict

from configs import published


def get_config() -> ConfigDict:
    config = published.large_images("celebahq", 256)
    published.vp_discrete(config)
    published.ddpm(config, multipliers=(1, 1, 2, 2, 4, 4))
    config.optim.lr = 2e-5
    return config
