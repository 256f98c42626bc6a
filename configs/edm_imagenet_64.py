"""EDM on ImageNet at 64 pixels, Karras et al. 2022 (arXiv:2206.00364).

python main.py --config=configs/edm_imagenet_64.py --mode=train
python main.py --config=configs/edm_imagenet_64.py --mode=import --source=FILE --workdir=runs/edm
python main.py --config=configs/edm_imagenet_64.py --mode=sample --workdir=runs/edm

    variant   file                             parameters   FID
    edm       edm-imagenet-64x64-cond-adm          295.9M   1.36   (the default)
    adm       baseline-imagenet-64x64-cond-adm     295.9M   1.55

Both have 1000 classes. Training of `edm` is the published one, which has no augmentation. FILE is a
state dict made from EDM's pickle, which is code (`published/edm.py` explains how). The figures are
those published, with EDM's stochastic sampler; none was measured with this code. `edm` takes 511
network evaluations, as there.

`adm` is EDM's baseline: the network of ADM, 64x64_diffusion.pt, in EDM's code. It was trained by
configs/adm_imagenet.py:64, and this one only samples from it. It counts the 1000 timesteps of its
cosine chain. EDM's sampler meets noise levels between them, and the network is given the nearest
timestep. EDM's code also rounds the levels themselves, which this one does not.

ADM's classifier, 64x64_classifier.pt, can guide both.
"""

from ml_collections import ConfigDict

from configs import _song2021, adm_imagenet, edm_cifar10

VARIANTS = ("edm", "adm")

# The first and last levels of EDM's sampler, 80 and 0.002, at the nearest timestep of the chain.
_SIGMA_MAX, _SIGMA_MIN = 80.20422, 0.006425413


def get_config(variant: str = "edm") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    config = _song2021.large_images("imagenet_resized/64x64", 64)
    adm_imagenet.adm(config, features=192, multipliers=(1, 2, 3, 4), blocks=3)
    config.model.num_classes = 1000
    adm_imagenet.adm_classifier(config, blocks=4)
    config.classifier.conditioning = "iddpm"
    edm_cifar10.edm_process(config, steps=256)
    config.sampling.s_churn = 40.0
    config.sampling.churn_min = 0.05
    config.sampling.churn_max = 50.0
    config.sampling.churn_noise = 1.003
    if variant == "adm":
        config.sde.sigma_max = _SIGMA_MAX
        config.sampling.t_min = _SIGMA_MIN / _SIGMA_MAX
        config.sampling.s_churn = 80.0
        config.denoiser.parameterization = "iddpm"
        config.denoiser.conditioning = "iddpm"
        config.training.published_batch_size = 0
    else:
        config.model.learned_variance = False
        config.model.dropout = 0.1
        edm_cifar10.edm_training(
            config,
            lr=1e-4,
            batch_size=4096,
            augmentation=0.0,
            images=2500e6,
            half_life_images=50e6,
            hardware="32 A100",
        )
    return config
