"""An energy of points of two moons, by score matching or by maximum likelihood.

python main.py --config=configs/energy_moons.py --mode=train
python main.py --config=configs/energy_moons.py:maximum_likelihood --mode=train

Both networks are the gradient of an energy and have the same size. The first is trained at all
noise levels, and the second at one. The number of steps gives both about the same time, half a
minute on two CPU cores; see docs/energies.md.
"""

from ml_collections import ConfigDict

from configs import vp_swiss_roll
from configs._song2021 import check_variant

VARIANTS = ("score_matching", "maximum_likelihood")


def get_config(variant: str = "score_matching") -> ConfigDict:
    check_variant(variant, VARIANTS)
    config = vp_swiss_roll.get_config()
    config.data.name = "points:moons"
    config.model.features = 64
    config.model.depth = 2
    config.denoiser.energy = True
    config.optim.lr = 1e-3
    config.training.batch_size = 256
    config.training.steps = 4000
    config.training.checkpoint_every = 4000
    config.training.sample_every = 4000
    if variant == "maximum_likelihood":
        config.loss.name = "maximum_likelihood"
        config.training.steps = 1500
        config.training.checkpoint_every = 1500
        config.training.sample_every = 1500
        config.sampling.name = "langevin"
        config.sampling.grid = "uniform"
        config.sampling.steps = 1000
        config.sampling.final_step = "none"
        config.eval.metrics = ("log_density", "frechet", "sliced_wasserstein", "mmd")
    return config
