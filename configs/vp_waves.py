"""VP SDE on short series: sines, triangles and square waves of 32 steps, by a 1-D U-Net.

python main.py --config=configs/vp_waves.py --mode=train
python main.py --config=configs/vp_waves.py --mode=sample --num_samples=16

Trains in about a minute on two CPU cores. The variant `conditional` is conditioned on which wave.
"""

from ml_collections import ConfigDict

from configs import vp_swiss_roll
from configs._song2021 import check_variant

VARIANTS = ("unconditional", "conditional")


def get_config(variant: str = "unconditional") -> ConfigDict:
    check_variant(variant, VARIANTS)
    config = vp_swiss_roll.get_config()
    config.data.name = "series:waves"
    config.model.name = "unet1d"
    config.model.features = 16
    config.model.channel_multipliers = (1, 2, 4)
    config.model.blocks_per_resolution = 1
    config.model.depth = None
    if variant == "conditional":
        config.model.num_classes = 3

    config.training.batch_size = 64
    config.training.steps = 1000
    config.training.checkpoint_every = 1000
    config.training.sample_every = 1000
    config.training.sample_count = 16
    config.likelihood.trace = "rademacher"
    config.likelihood.rtol = 1e-4
    config.likelihood.atol = 1e-4
    config.eval.batch_size = 200
    config.eval.samples = 1000
    return config
