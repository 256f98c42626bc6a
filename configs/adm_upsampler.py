r"""Upsamplers of ADM on ImageNet, Dhariwal and Nichol 2021 (arXiv:2105.05233).

python main.py --config=configs/adm_upsampler.py:64_256 --mode=train
python main.py --config=configs/adm_upsampler.py:64_256 --mode=import --source=FILE \
  --workdir=runs/up
python main.py --config=configs/adm_upsampler.py:64_256 --mode=sample --workdir=runs/up \
  --config.task.name=upsample --config.task.input=small.png --config.sampling.label=207

    variant   file                    parameters   FID
    64_256    64_256_upsampler.pt         311.8M   3.94   (the default)
    128_512   128_512_upsampler.pt        308.8M   3.85

The task takes images of 64 or 128 pixels and their classes. The figures are those published, of
guided small images; none was measured with this code. Training is the published one (Appendix I
there). It shrinks the images by means over blocks of pixels.
"""

from ml_collections import ConfigDict

from configs import _song2021, adm_imagenet

VARIANTS = ("64_256", "128_512")


def get_config(variant: str = "64_256") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    config = _song2021.large_images("imagenet2012", int(variant.partition("_")[2]))
    config.training.sample_every = 0  # there is no small image then
    adm_imagenet.adm(config, features=192, multipliers=(1, 1, 2, 2, 4, 4), blocks=2)
    adm_imagenet.adm_process(config, schedule="linear")
    config.model.upsampling = 4
    config.model.num_classes = 1000
    steps = {"64_256": 500_000, "128_512": 1_050_000}
    adm_imagenet.adm_training(config, lr=1e-4, batch_size=256, steps=steps[variant])
    if variant == "64_256":
        config.model.heads = 4
    else:
        config.model.attention_resolutions = (32, 16)
    return config
