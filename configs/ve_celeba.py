"""VE SDE on CelebA at 64 pixels, Song et al. 2021 (arXiv:2011.13456), NCSN and NCSNv2.

python main.py --config=configs/ve_celeba.py --mode=train

    variant      parameters   FID
    ncsnpp            62.7M   about 2.5 (a remark by the author)   (the default)
    ncsn              34.4M   10 noise levels, no average
    ncsn_5            34.4M   with technique 5 of NCSNv2, the average
    ncsn_124          57.4M   with techniques 1, 2, 4: 500 noise levels up to 90
    ncsn_1245         57.4M   with all four
    ncsnv2            34.0M

The figures are those published; none was measured with this code. Repaired: the published NCSN
networks lack the number of noise levels and one normalization, and cannot run; one file sets
`training.loss`, but its code reads `training.sde`.
"""

from ml_collections import ConfigDict

from configs import _song2021

VARIANTS = ("ncsnpp", "ncsn", "ncsn_5", "ncsn_124", "ncsn_1245", "ncsnv2")


def get_config(variant: str = "ncsnpp") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    config = _song2021.celeba()
    if variant == "ncsnpp":
        _song2021.ve_discrete(config, sigma_max=90.0, snr=0.17)
        _song2021.ncsnpp(config)
    else:
        _song2021.song_ermon(
            config, variant, sigma_max=90.0, num_timesteps=500, corrector_steps=5, snr=0.128
        )
    return config
