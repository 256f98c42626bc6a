"""VP SDE on CIFAR-10, Song et al. 2021 (arXiv:2011.13456).

python main.py --config=configs/vp_cifar10.py --mode=train
python main.py --config=configs/vp_cifar10.py:ddpmpp_deep --mode=eval

    variant              parameters   FID    FID (ODE)   bits/dim   IS
    ddpm                      35.2M   3.24        3.37       3.28
    ddpm_continuous           35.2M               3.69       3.21
    ddpm_unconditional        32.3M
    ddpmpp                    61.8M   2.78                          9.64
    ddpmpp_continuous         61.8M   2.55        3.93       3.16   9.58   (the default)
    ddpmpp_deep              106.6M   2.41        3.08       3.13   9.68
    ncsnpp                    62.7M
    ncsnpp_continuous         62.7M
    ncsnpp_deep              107.5M

The figures are those published; none was measured with this code. Except for the deep ones,
variants without `_continuous` train on DDPM's 1000 timesteps. Their bits/dim were published for the
continuous process. To measure them, import the file with the `_continuous` variant.
"""

from ml_collections import ConfigDict

from configs import _song2021

VARIANTS = (
    "ddpm",
    "ddpm_continuous",
    "ddpm_unconditional",
    "ddpmpp",
    "ddpmpp_continuous",
    "ddpmpp_deep",
    "ncsnpp",
    "ncsnpp_continuous",
    "ncsnpp_deep",
)


def get_config(variant: str = "ddpmpp_continuous") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    config = _song2021.cifar10()
    network, _, kind = variant.partition("_")
    if kind in ("continuous", "deep"):
        _song2021.vp(config)
    else:
        predictor = "reverse_diffusion" if network == "ncsnpp" else "ancestral"
        _song2021.vp_discrete(config, predictor=predictor)
    if network == "ddpm":
        _song2021.ddpm(config)
    elif network == "ddpmpp":
        _song2021.ddpmpp(config, blocks=8 if kind == "deep" else 4)
    else:
        _song2021.ncsnpp(config, blocks=8 if kind == "deep" else 4)
    if kind == "unconditional":  # the noise level is not an input
        config.model.embedding = "none"
    return config
