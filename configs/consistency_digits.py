"""Few steps on the 8x8 digits: a teacher, and networks that sample in 1 to 8 evaluations.

python main.py --config=configs/consistency_digits.py:training --mode=train

    variant        what it trains
    teacher        a diffusion model, with EDM's preconditioning
    training       a consistency model, from data alone
    distillation   a consistency model, from the teacher
    progressive    a student, from the teacher or a student

Each trains for about a minute on two cores, a round of progressive distillation for half a minute.
docs/objectives.md has the commands of the rounds, docs/samplers.md the measured distances.
"""

from ml_collections import ConfigDict

from configs import vp_digits
from configs._song2021 import check_variant

VARIANTS = ("training", "distillation", "progressive", "teacher")
TEACHER = "runs/consistency_digits_teacher"  # where the variant `teacher` is trained by default


def get_config(variant: str = "training") -> ConfigDict:
    check_variant(variant, VARIANTS)
    config = vp_digits.get_config()
    # With eps, x0 would be undetermined in pure noise, where all few-step samplers start.
    config.denoiser.parameterization = "edm"
    config.denoiser.conditioning = "edm"
    config.weight.name = "edm"
    if variant == "teacher":
        return config
    config.eval.metrics = ("frechet",)  # these networks have no likelihood
    if variant != "training":
        config.loss.teacher = TEACHER
    if variant == "progressive":
        _progressive(config)
    else:
        _consistency(config, f"consistency_{variant}")
    return config


def _progressive(config: ConfigDict) -> None:
    config.loss.name = "progressive_distillation"
    config.loss.student_steps = 8
    config.loss.grid = "quadratic"
    config.weight.name = "truncated_snr"
    config.training.steps = 300  # per round
    config.training.checkpoint_every = 300
    config.training.sample_every = 300
    config.sampling.name = "ddim"


def _consistency(config: ConfigDict, loss: str) -> None:
    config.loss.name = loss
    config.denoiser.parameterization = "consistency"
    config.denoiser.sigma_min = 0.01  # a tenth of a gray level
    config.sampling.name = "consistency"
    config.sampling.grid = "log_snr"
    config.sampling.steps = 2
    config.sampling.final_step = "mean"
