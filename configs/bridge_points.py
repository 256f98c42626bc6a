r"""Bridges between two sets of points: eight Gaussians to moons, and back.

python main.py --config=configs/bridge_points.py --mode=train
python main.py --config=configs/bridge_points.py --mode=sample --num_samples=2000 \
    --config.task.name=translate --config.task.input=test

    variant       what it trains
    ot            flow matching, with pairs by optimal transport within batches (the default)
    independent   flow matching, with independent pairs
    reflow        a straighter flow, on pairs that the variant `independent` simulates
    bridge        a Brownian bridge, with pairs by entropic optimal transport within batches
    dsbm          the Schroedinger bridge, by --mode=train_bridge
    dsb           the same by the original method, which simulates chains for every batch

Each trains for about a minute on two cores, dsbm and dsb per round. docs/bridges.md has what they
reach.
"""

from ml_collections import ConfigDict

from configs import default
from configs._song2021 import check_variant

VARIANTS = ("ot", "independent", "reflow", "bridge", "dsbm", "dsb")
TEACHER = "runs/bridge_points_independent"  # where the variant `independent` is trained by default


def get_config(variant: str = "ot") -> ConfigDict:
    check_variant(variant, VARIANTS)
    config = default.get_config()
    config.data.name = "points:moons"
    config.coupling.data = "points:eight_gaussians"
    config.data.mean = (0.0, 0.0)  # both sets in their own units, which are the same
    config.data.std = (1.0, 1.0)
    config.model.name = "mlp"
    config.model.features = 128
    config.model.depth = 3

    config.sde.name = "linear"
    config.denoiser.parameterization = "velocity"
    config.denoiser.conditioning = "timestep_999"
    config.weight.name = "velocity"
    config.times.name = "uniform"
    config.times.t_min = 1e-3
    config.sampling.name = "ddim"
    config.sampling.grid = "uniform"
    config.sampling.steps = 50
    config.sampling.final_step = "denoise"
    if variant == "ot":
        config.coupling.name = "minibatch_ot"
    if variant == "reflow":
        config.coupling.name = "simulated"
        config.coupling.run = TEACHER
    if variant in ("bridge", "dsbm", "dsb"):
        config.sde.diffusion = 0.7
        config.denoiser.parameterization = "bridge"
        # Near the data, the noise of a bridge is of the size of the moons' width.
        config.denoiser.conditioning = "log_snr"
        config.times.name = "logit_normal"
        config.times.mean = -1.0
        config.times.std = 1.5
        config.weight.name = "bridge"
        config.sampling.name = "bridge"
        config.sampling.grid = "quadratic"
    if variant == "bridge":
        config.coupling.name = "minibatch_ot"
    if variant == "dsb":
        config.coupling.name = "reference"
        config.loss.name = "mean_matching"
        config.loss.num_timesteps = 30
        config.sampling.t_min = 2 / 30**2  # the first time of a chain
        config.sampling.variance = "large"

    config.optim.lr = 2e-3
    config.optim.warmup = 100
    config.optim.schedule = "cosine"
    config.ema.rate = 0.995

    config.training.batch_size = 32 if variant == "dsb" else 256  # chains, or rows
    config.training.steps = 3000
    config.training.steps_per_call = 50
    config.training.checkpoint_every = 3000
    config.training.sample_every = 3000
    config.training.sample_count = 2000
    config.diagnostics.every = 0
    config.eval.metrics = ("frechet", "sliced_wasserstein", "mmd")
    config.eval.batch_size = 1000
    config.eval.samples = 2000
    return config
