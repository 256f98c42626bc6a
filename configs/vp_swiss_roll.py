"""VP SDE on points of a swiss roll: trains in about 20 seconds on two CPU cores.

python main.py --config=configs/vp_swiss_roll.py --mode=train
python main.py --config=configs/vp_swiss_roll.py --mode=sample --num_samples=4000 --gif

Other points: --config.data.name=points:moons, and so on; see docs/points.md. The variant
`conditional` is for points with classes, and learns moons.
"""

from ml_collections import ConfigDict

from configs import default
from configs._song2021 import check_variant

VARIANTS = ("unconditional", "conditional")


def get_config(variant: str = "unconditional") -> ConfigDict:
    check_variant(variant, VARIANTS)
    config = default.get_config()
    config.data.name = "points:swiss_roll"
    config.model.name = "mlp"
    config.model.features = 128
    config.model.depth = 3
    if variant == "conditional":
        config.data.name = "points:moons"
        config.model.num_classes = 2
        config.classifier.name = "mlp_classifier"
        config.classifier.features = 64
        config.classifier.num_classes = 2
        config.classifier.conditioning = "log_snr"
        config.classifier.batch_size = 512

    # The network's own output is small, however far from the data x is.
    config.denoiser.parameterization = "edm"
    config.denoiser.sigma_data = 1.0
    config.denoiser.conditioning = "log_snr"
    config.times.name = "log_snr"
    config.optim.lr = 2e-3
    config.optim.warmup = 100
    config.optim.schedule = "cosine"
    config.ema.rate = 0.995

    config.training.batch_size = 512
    config.training.steps = 2000
    config.training.steps_per_call = 50
    config.training.checkpoint_every = 2000
    config.training.sample_every = 2000
    config.training.sample_count = 2000
    config.diagnostics.every = 0
    config.sampling.name = "unipc"
    config.sampling.grid = "log_snr"
    config.sampling.steps = 29
    config.sampling.final_step = "denoise"
    config.likelihood.trace = "exact"
    config.eval.batch_size = 1000
    config.eval.samples = 2000
    return config
