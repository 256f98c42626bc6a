"""VE SDE with NCSN++ on CelebA-HQ at 256 pixels, Song et al. 2021 (arXiv:2011.13456).

python main.py --config=configs/ve_celebahq_256.py --mode=train --config.data.name=FOLDER

65.6M parameters. No figures were published, and none was measured with this code. FOLDER holds the
images, of any size.
"""

from ml_collections import ConfigDict

from configs import _song2021


def get_config() -> ConfigDict:
    config = _song2021.large_images("celebahq", 256)
    _song2021.ve(config, sigma_max=348.0, snr=0.075, steps=2000)
    _song2021.ncsnpp_256(config)
    return config
