"""Published network of EDM on ImageNet at 64 pixels, Karras et al. 2022 (arXiv:2206.00364).

python main.py --config=configs/edm_imagenet_64.py --mode=import --source=FILE --workdir=runs/edm
python main.py --config=configs/edm_imagenet_64.py --mode=sample --workdir=runs/edm

295.9M parameters, 1000 classes. The published FID is 1.36, with EDM's stochastic sampler and 511
network evaluations, as here; it was not measured with this code. FILE is a state dict made from
EDM's pickle, which is code (`published/edm.py` explains how).
"""

from ml_collections import ConfigDict

from configs import _song2021, adm_imagenet, edm_cifar10


def get_config() -> ConfigDict:
    config = _song2021.large_images("imagenet_resized/64x64", 64)
    adm_imagenet.adm(config, features=192, multipliers=(1, 2, 3, 4), blocks=3)
    config.model.num_classes = 1000
    config.model.learned_variance = False
    edm_cifar10.edm_process(config, steps=256)
    config.sampling.s_churn = 40.0
    config.sampling.churn_min = 0.05
    config.sampling.churn_max = 50.0
    config.sampling.churn_noise = 1.003
    return config
