"""DDPM's chain and network on LSUN churches at 256 pixels, Song et al. 2021 (arXiv:2011.13456).

python main.py --config=configs/vp_church.py --mode=train

111.6M parameters. Ho et al. 2020 (arXiv:2006.11239) report FID 7.89. No figure was measured with
this code.
"""

from ml_collections import ConfigDict

from configs import _song2021


def get_config() -> ConfigDict:
    config = _song2021.large_images("lsun/church_outdoor", 256)
    _song2021.vp_discrete(config)
    _song2021.ddpm(config, multipliers=(1, 1, 2, 2, 4, 4))
    config.optim.lr = 2e-5
    return config
