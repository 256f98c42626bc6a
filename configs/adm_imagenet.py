r"""ADM on ImageNet, Dhariwal and Nichol 2021 (arXiv:2105.05233).

python main.py --config=configs/adm_imagenet.py:64 --mode=train
python main.py --config=configs/adm_imagenet.py:256 --mode=import --source=FILE --workdir=runs/adm
python main.py --config=configs/adm_imagenet.py:256 --mode=sample --workdir=runs/adm

    variant             file                       parameters   FID    scale of guidance
    64                  64x64_diffusion.pt             295.9M   2.07    1.0   (the default)
    128                 128x128_diffusion.pt           421.5M   2.97    0.5
    256                 256x256_diffusion.pt           553.8M   4.59    1.0
    256_unconditional   256x256_diffusion_uncond.pt    552.8M          10.0
    512                 512x512_diffusion.pt           559.0M   7.72    4.0

The file of `64` also needs --attention_order=new. Guidance takes the classifier of the same
resolution, such as 256x256_classifier.pt, which never needs that flag:

python main.py --config=configs/adm_imagenet.py:256 --mode=import_classifier --source=FILE \
  --workdir=runs/adm
python main.py --config=configs/adm_imagenet.py:256 --mode=sample --workdir=runs/adm \
  --config.guidance.name=classifier --config.guidance.scale=1.0 \
  --config.sampling.guidance_form=mean

Training is the published one: batch sizes, steps and learning rates are those of Appendix I there.
The paper does not state the steps of `256_unconditional`; they are those of `256`. The figures are
those published, guided from 128 on; none was measured with this code.
"""

from ml_collections import ConfigDict

from configs import _song2021

VARIANTS = ("64", "128", "256", "256_unconditional", "512")


def get_config(variant: str = "64") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    size, _, unconditional = variant.partition("_")
    config = _song2021.large_images("imagenet2012", int(size))
    if size == "64":
        config.data.name = "imagenet_resized/64x64"
        adm(config, features=192, multipliers=(1, 2, 3, 4), blocks=3)
        adm_process(config, schedule="cosine")
        adm_classifier(config, blocks=4)
        config.model.dropout = 0.1
        adm_training(config, lr=3e-4, batch_size=2048, steps=540_000)
    else:
        multipliers = {
            "128": (1, 1, 2, 3, 4),
            "256": (1, 1, 2, 2, 4, 4),
            "512": (0.5, 1, 1, 2, 2, 4, 4),
        }
        adm(config, features=256, multipliers=multipliers[size], blocks=2)
        adm_process(config, schedule="linear")
        adm_classifier(config, blocks=2)
        steps = {"128": 4_360_000, "256": 1_980_000, "512": 1_940_000}
        adm_training(config, lr=1e-4, batch_size=256, steps=steps[size])
    if size == "128":
        config.model.heads = 4
    if size == "512":
        config.training.published_hardware = "V100"
    if not unconditional:
        config.model.num_classes = 1000
    return config


def adm(config: ConfigDict, *, features: int, multipliers: tuple[float, ...], blocks: int) -> None:
    """Set ADM's network, with learned variances."""
    config.model.name = "adm"
    config.model.features = features
    config.model.channel_multipliers = multipliers
    config.model.blocks_per_resolution = blocks
    config.model.attention_resolutions = (32, 16, 8)
    config.model.learned_variance = True


def adm_classifier(config: ConfigDict, *, blocks: int) -> None:
    """Set ADM's classifier of noisy images, which has the resolutions of its network."""
    config.classifier.name = "adm_classifier"
    config.classifier.features = 128
    config.classifier.channel_multipliers = config.model.channel_multipliers
    config.classifier.blocks_per_resolution = blocks
    config.classifier.attention_resolutions = (32, 16, 8)
    config.classifier.head_width = 64
    config.classifier.num_groups = 32
    config.classifier.num_classes = 1000


def adm_process(config: ConfigDict, *, schedule: str) -> None:
    """Set DDPM's chain of 1000 timesteps; the network predicts the noise."""
    _song2021.vp_discrete(config)
    config.sde.schedule = schedule
    config.sampling.variance = "learned"
    config.discrete_bound.variance = "learned"
    config.sampling.clip = "range"
    config.denoiser.parameterization = "eps_learned_variance"
    config.loss.name = "hybrid"


def adm_training(config: ConfigDict, *, lr: float, batch_size: int, steps: int) -> None:
    """Set the training of Improved DDPM and ADM: Adam without warm-up or clipping."""
    config.optim.lr = lr
    config.optim.warmup = 0
    config.optim.grad_clip = 0.0
    config.ema.rate = 0.9999
    config.ema.warmup = False
    config.training.label_dropout = 0.0
    _song2021.published_batch(config, batch_size)
    config.training.steps = steps
