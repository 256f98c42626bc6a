"""An energy of points of two moons, by score matching or by maximum likelihood.

python main.py --config=configs/energy_moons.py --mode=train
python main.py --config=configs/energy_moons.py:maximum_likelihood --mode=train

Both networks are the gradient of an energy and have the same size. The first is trained at all
noise levels, and the second at one; see docs/energies.md.
"""

from ml_collections import ConfigDict

from configs import vp_swiss_roll
from configs._song2021 import check_variant

VARIANTS = ("score_matching", "maximum_likelihood")


def get_config(variant: str = "score_matching") -> ConfigDict:
    check_variant(variant, VARIANTS)
    config = vp_swiss_roll.get_config()
    config.data.name = "points:moons"
    config.model.depth = 2
    config.denoiser.energy = True
    config.training.steps = 1500
    config.training.checkpoint_every = 1500
    config.training.sample_every = 1500
    if variant == "maximum_likelihood":
        config.loss.name = "maximum_likelihood"
        config.sampling.name = "langevin"
        config.sampling.steps = 1000
    return config
