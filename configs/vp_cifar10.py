"""VP SDE on CIFAR-10 with DDPM++ (continuous), Song et al. 2021 (arXiv:2011.13456).

Published: FID 2.55, IS 9.58, 3.16 bits/dim (ODE), 61.8M parameters, 1.3M steps of 128 images. Not
measured with this code.
"""

from ml_collections import ConfigDict

from configs import default


def get_config() -> ConfigDict:
    config = default.get_config()
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.data.channels = 3
    config.data.random_flip = True
    config.data.dequantize = False

    config.model.features = 128
    config.model.channel_multipliers = (1, 2, 2, 2)
    config.model.blocks_per_level = 4
    config.model.attention_resolutions = (16,)
    config.model.dropout = 0.1
    config.model.residual_block = "biggan"
    config.model.resample = "plain"
    config.model.progressive_input = "none"
    config.model.embedding = "positional"

    config.training.batch_size = 128
    config.training.steps = 1_300_000
    config.training.log_every = 50
    config.training.checkpoint_every = 10_000
    config.training.sample_every = 50_000

    config.sampling.predictor = "euler_maruyama"
    config.sampling.steps = 1000
    config.eval.batch_size = 1024
    config.eval.samples = 50_000
    return config
