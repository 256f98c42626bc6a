"""VE SDE on CIFAR-10, Song et al. 2021 (arXiv:2011.13456), and its predecessors NCSN and NCSNv2.

python main.py --config=configs/ve_cifar10.py --mode=train
python main.py --config=configs/ve_cifar10.py:ncsnpp_deep --mode=eval

    variant              parameters   FID     IS
    ddpm                      35.2M
    ncsnpp                    62.7M    2.45   9.73
    ncsnpp_continuous         62.8M    2.38   9.83   (the default)
    ncsnpp_deep              107.6M    2.20   9.89
    ncsn                      34.4M   25.32   8.87   NCSN v1: 10 noise levels, no average
    ncsn_5                    34.4M                  with technique 5 of NCSNv2, the average
    ncsn_124                  44.8M                  with techniques 1, 2, 4: 232 levels up to 50
    ncsn_1245                 44.8M                  with all four
    ncsnv2                    34.0M   10.87   8.40

`config.classifier` describes the published wide ResNet, which guides these networks to a class; see
docs/checkpoints.md. The figures are those published; none was measured with this code. Repaired:
the published NCSN networks lack the number of noise levels and one normalization, and cannot run.
"""

from ml_collections import ConfigDict

from configs import _song2021

VARIANTS = (
    "ddpm",
    "ncsnpp",
    "ncsnpp_continuous",
    "ncsnpp_deep",
    "ncsn",
    "ncsn_5",
    "ncsn_124",
    "ncsn_1245",
    "ncsnv2",
)


def get_config(variant: str = "ncsnpp_continuous") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    config = _song2021.cifar10()
    network, _, kind = variant.partition("_")
    chain = {"sigma_max": 50.0, "num_timesteps": 232, "corrector_steps": 5, "snr": 0.176}
    if network in ("ncsn", "ncsnv2"):
        _song2021.song_ermon(config, variant, **chain)
    else:
        process = _song2021.ve if kind in ("continuous", "deep") else _song2021.ve_discrete
        process(config, sigma_max=50.0, snr=0.16)
        if network == "ddpm":
            _song2021.ddpm(config)
        else:
            _song2021.ncsnpp(config, blocks=8 if kind == "deep" else 4)
    _classifier(config)
    return config


def _classifier(config: ConfigDict) -> None:
    """Set the published classifier of noisy images, whose channels are whitened as CIFAR-10's."""
    config.classifier.name = "wide_resnet"
    config.classifier.features = 128
    config.classifier.channel_means = (0.49139968, 0.48215841, 0.44653091)
    config.classifier.channel_stds = (0.24703223, 0.24348513, 0.26158784)
    config.classifier.conditioning = "log_sigma"
    config.classifier.scale_input = False
