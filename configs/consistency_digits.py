"""Few steps on the 8x8 digits: a teacher, then networks that sample in 1 to 8 evaluations.

python main.py --config=configs/consistency_digits.py:teacher --mode=train
python main.py --config=configs/consistency_digits.py:distillation --mode=train

"""

from ml_collections import ConfigDict

from configs import vp_digits
from configs._song2021 import check_variant

VARIANTS = ("teacher", "training", "distillation", "progressive")
TEACHER = "runs/consistency_digits_teacher"


def get_config(variant: str = "training") -> ConfigDict:
    check_variant(variant, VARIANTS)
    config = vp_digits.get_config()
    # x0 is determined at every noise level, also where there is no signal, as for students.
    config.denoiser.parameterization = "edm"
    config.denoiser.conditioning = "edm"
    config.weight.name = "edm"
    config.times.name = "stratified"
    if variant == "teacher":
        return config
    config.eval.metrics = ("frechet",)
    config.likelihood.probes = 1
    if variant != "training":
        config.loss.teacher = TEACHER
    if variant == "progressive":
        config.loss.name = "progressive_distillation"
        config.loss.student_steps = 8
        config.loss.grid = "quadratic"
        config.weight.name = "truncated_snr"
        return config
    config.loss.name = f"consistency_{variant}"
    config.denoiser.parameterization = "consistency"
    config.denoiser.sigma_min = 0.01
    config.sampling.name = "consistency"
    config.sampling.grid = "log_snr"
    config.sampling.steps = 2
    config.sampling.final_step = "mean"
    return config
