"""ADM on LSUN at 256 pixels, Dhariwal and Nichol 2021 (arXiv:2105.05233).

python main.py --config=configs/adm_lsun_256.py --mode=train
python main.py --config=configs/adm_lsun_256.py --mode=import --source=FILE --workdir=runs/adm
python main.py --config=configs/adm_lsun_256.py --mode=sample --workdir=runs/adm

    variant   file                        parameters   FID
    bedroom   lsun_bedroom.pt                 552.8M   1.90   (the default)
    cat       lsun_cat.pt                     552.8M   5.57
    horse     lsun_horse.pt                   552.8M   2.57

Training is the published one (Appendix I there). The figures are those published; none was measured
with this code.
"""

from ml_collections import ConfigDict

from configs import _song2021, adm_imagenet

VARIANTS = ("bedroom", "cat", "horse")
_STEPS = {"bedroom": 500_000, "cat": 200_000, "horse": 250_000}


def get_config(variant: str = "bedroom") -> ConfigDict:
    _song2021.check_variant(variant, VARIANTS)
    config = _song2021.large_images(f"lsun/{variant}", 256)
    adm_imagenet.adm(config, features=256, multipliers=(1, 1, 2, 2, 4, 4), blocks=2)
    adm_imagenet.adm_process(config, schedule="linear")
    config.model.dropout = 0.1
    adm_imagenet.adm_training(config, lr=1e-4, batch_size=256, steps=_STEPS[variant])
    return config
