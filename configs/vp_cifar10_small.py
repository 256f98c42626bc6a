"""VP SDE on CIFAR-10, conditioned on the class, with a small DDPM++: 110 CPU minutes.

python main.py --config=configs/vp_cifar10_small.py --mode=prepare
python main.py --config=configs/vp_cifar10_small.py --mode=train
python main.py --config=configs/vp_cifar10_small.py --mode=train_classifier
python main.py --config=configs/vp_cifar10_small.py --mode=eval

The recipe is that of `vp_mnist`. The network has few channels at 32 pixels and many at 8, where a
parameter costs least. Measured on copies of the images through JPEG:

    1,000 samples to the training images, Frechet distance of classifier features   1.60
    10,000 test images to the training images                                       0.02
"""

from ml_collections import ConfigDict

from configs import vp_mnist


def get_config() -> ConfigDict:
    config = vp_mnist.get_config()
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.random_flip = True

    config.model.features = 32
    config.model.channel_multipliers = (1, 3, 5)
    config.model.attention_resolutions = (8,)
    config.model.residual_block = "biggan"

    config.optim.lr = 1e-3
    config.training.steps = 3000
    config.diagnostics.every = 1500
    config.classifier.steps = 3000
    return config
