r"""Bridges between sets of 8x8 digits: threes and eights without pairs, and small images to large.

python main.py --config=configs/bridge_digits.py --mode=train
python main.py --config=configs/bridge_digits.py --mode=sample --num_samples=16 \
    --config.task.name=translate --config.task.input=test

    variant         from                 to
    unpaired        eights               threes; a flow, which knows both directions (the default)
    dsbm            eights               threes; the Schroedinger bridge, by --mode=train_bridge
    super_resolve   means of 2x2 pixels  the digits; a Brownian bridge between given pairs (I2SB)

Each trains for about a minute on two cores; dsbm has as many steps per round.
"""

from ml_collections import ConfigDict

from configs import vp_digits
from configs._song2021 import check_variant

VARIANTS = ("unpaired", "dsbm", "super_resolve")


def get_config(variant: str = "unpaired") -> ConfigDict:
    check_variant(variant, VARIANTS)
    config = vp_digits.get_config()
    config.sde.name = "linear"
    config.denoiser.conditioning = "timestep_999"
    config.times.t_min = 1e-3
    config.sampling.grid = "uniform"
    config.sampling.steps = 30
    config.training.checkpoint_every = 1200
    config.training.sample_every = 1200
    config.diagnostics.every = 0
    config.eval.metrics = ("frechet",)
    if variant == "super_resolve":
        config.coupling.name = "paired"
        config.coupling.measurement = "super_resolve"
    else:
        config.data.name = "digits:3"
        config.coupling.data = "digits:8"
    if variant == "unpaired":
        config.coupling.name = "minibatch_ot"
        config.denoiser.parameterization = "velocity"
        config.weight.name = "velocity"
        config.sampling.name = "ddim"
    else:
        config.sde.diffusion = 0.5
        config.denoiser.parameterization = "bridge"
        config.weight.name = "bridge"
        config.sampling.name = "bridge"
        config.sampling.grid = "quadratic"
    return config
