"""VE SDE with NCSN++ on CelebA-HQ at 1024 pixels, Song et al. 2021 (arXiv:2011.13456).

python main.py --config=configs/ve_celebahq_1024.py --mode=train --config.data.name=FOLDER

105.8M parameters. No figures were published, and none was measured with this code. FOLDER holds the
images. Repaired: the published file lacks fields that its own code reads.
"""

from ml_collections import ConfigDict

from configs import _song2021


def get_config() -> ConfigDict:
    config = _song2021.large_images("celebahq", 1024, batch_size=8)
    _song2021.ve(config, sigma_max=1348.0, snr=0.15, steps=2000, ema=0.9999)
    _song2021.ncsnpp_1024(config)
    return config
