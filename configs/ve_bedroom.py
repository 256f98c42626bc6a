"""VE SDE on LSUN bedrooms, Song et al. 2021 (arXiv:2011.13456), and NCSNv2.

python main.py --config=configs/ve_bedroom.py --mode=train

    variant              pixels   parameters
    ncsnpp_continuous       256        65.6M   (the default)
    ncsnv2                  128

No figures were published, and none was measured with this code. Repaired: the published NCSNv2
misspells `continuous`, and so trains in continuous time on discrete labels.
"""

from ml_collections import ConfigDict

from configs import _song2021

VARIANTS = ("ncsnpp_continuous", "ncsnv2")


def get_config(variant: str = "ncsnpp_continuous") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    if variant == "ncsnv2":
        config = _song2021.large_images("lsun/bedroom", 128, batch_size=128)
        _song2021.annealed_langevin(
            config,
            sigma_max=190.0,
            num_timesteps=1086,
            corrector_steps=3,
            snr=0.095,
            lr=1e-4,
            ema=0.9999,
        )
        _song2021.ncsnv2(config, size=128)
        return config
    config = _song2021.large_images("lsun/bedroom", 256)
    _song2021.ve(config, sigma_max=378.0, snr=0.075, steps=2000)
    _song2021.ncsnpp_256(config)
    return config
