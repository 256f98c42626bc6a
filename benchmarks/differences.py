"""The differences between published code and ours, whose sizes `fidelity.py` measures."""

from dataclasses import dataclass, field
from typing import Any

from sizes import (
    AVERAGES_DIFFER,
    GUIDED_SAMPLES_DIFFER,
    LOG_PROBS_DIFFER,
    NETWORKS_DIFFER,
    SAMPLES_DIFFER,
    Measure,
)

from experiment.build import build
from experiment.configurations import load_configuration
from experiment.experiment import Experiment


@dataclass(frozen=True)
class Difference:
    """A published behavior that ours differs from by default.

    Attributes:
        name: short name, for --only.
        topic: heading in the page.
        published: what the published code does.
        ours: what ours does by default.
        config: the configuration that shows it.
        settings: fields of both sides.
        fields: fields that give the published behavior; none if ours cannot do it.
        measure: the size, from the experiments of ours and theirs; None where `size` states it.
        size: the size, where nothing is measured here.
        case: the case of the size, where it is not obvious from the page.
    """

    name: str
    topic: str
    published: str
    ours: str
    config: str = "configs/vp_digits.py"
    settings: dict[str, Any] = field(default_factory=dict)
    fields: dict[str, Any] = field(default_factory=dict)
    measure: Measure | None = None
    size: str = ""
    case: str = ""

    def experiments(self) -> tuple[Experiment, Experiment]:
        """Build the configuration with our defaults, and with the published fields."""
        return _build(self.config, self.settings), _build(self.config, self.settings | self.fields)


def _build(name: str, fields: dict[str, Any]) -> Experiment:
    config = load_configuration(name)
    for path, value in fields.items():
        section, _, leaf = path.rpartition(".")
        config[section][leaf] = value
    return build(config, overrides=frozenset(fields))


_VE, _VP = "configs/ve_cifar10.py", "configs/vp_cifar10.py"
_PUBLISHED_PC = {"sampling.discretization": "published", "sampling.final_step": "mean"}

DIFFERENCES = (
    Difference(
        name="ve_discretization",
        topic="Sampling (Song et al.)",
        published="Predictor-Corrector steps look sigma up in a table of N levels; N steps start at N times from 1 to t_min, and the last one goes past t_min",
        ours="the exact transition from each time to the next; N - 1 steps and a denoising step",
        config=_VE,
        fields=_PUBLISHED_PC,
        measure=SAMPLES_DIFFER,
    ),
    Difference(
        name="vp_discretization",
        topic="Sampling (Song et al.)",
        published="Euler-Maruyama takes steps of 1 / N on a grid whose spacing is (1 - t_min) / (N - 1)",
        ours="steps of the grid's own spacing; N - 1 steps and a denoising step",
        config=_VP,
        fields=_PUBLISHED_PC,
        measure=SAMPLES_DIFFER,
    ),
    Difference(
        name="chain_labels",
        topic="Sampling (Song et al.)",
        published="networks of a chain get fractional timesteps 999, ..., 1.998, 0.999, while sigma comes from the timestep below",
        ours="the timesteps 999, ..., 1, 0 of training, for both",
        config=f"{_VP}:ddpm",
        settings={},
        fields=_PUBLISHED_PC | {"sampling.grid": "uniform", "sampling.steps": 999},
        measure=SAMPLES_DIFFER,
    ),
    Difference(
        name="langevin_norms",
        topic="Sampling (Song et al.)",
        published="the Langevin step size comes from mean norms over the batch, so a sample depends on its batch",
        ours="norms of each sample",
        config=_VE,
        fields={"sampling.norm_reduction": "batch"},
        measure=SAMPLES_DIFFER,
    ),
    Difference(
        name="ncsn_noise",
        topic="Sampling (Song et al.)",
        published="corrector-only samplers (NCSN, NCSNv2) return the last state with its noise",
        ours="a denoising step at the end",
        config="configs/ve_cifar10.py:ncsnv2",
        fields={"sampling.final_step": "none"},
        measure=SAMPLES_DIFFER,
    ),
    Difference(
        name="ode_end",
        topic="Sampling (Song et al.)",
        published="the ode sampler ends with a step of reverse diffusion, without its noise",
        ours="Tweedie's formula, the mean of the data given the last state",
        size="noise left by theirs: none for VE, about 0.1 gray levels for VP",
    ),
    Difference(
        name="edm_churn",
        topic="Sampling (others)",
        published="EDM adds noise before its first and last steps too, which for the first goes beyond the prior",
        ours="no noise before these steps; the configurations of EDM set the field",
        config="configs/edm_cifar10.py",
        settings={"sampling.s_churn": 10.0, "sampling.churn_all_levels": False},
        fields={"sampling.churn_all_levels": True},
        measure=SAMPLES_DIFFER,
    ),
    Difference(
        name="edm_time",
        topic="Sampling (others)",
        published="EDM's ablation integrates VP in its own time and scaling, and ends with a step to noise 0",
        ours="in the noise level sigma / alpha, and a denoising step",
        config="configs/edm_cifar10.py",
        settings={"sampling.steps": 255},
        case="256 steps",
        fields={
            "sampling.variable": "vp_time",
            "sampling.scaling": "vp",
            "sampling.grid": "vp_time",
            "sampling.final_euler": True,
            "sampling.final_step": "none",
        },
        measure=SAMPLES_DIFFER,
    ),
    Difference(
        name="singlestep_orders",
        topic="Sampling (others)",
        published="DPM-Solver's singlestep method spaces the ends of its steps by their orders",
        ours="all evaluations on the grid",
        settings={
            "sampling.name": "dpm_solver",
            "sampling.method": "singlestep",
            "sampling.order": 3,
            "sampling.steps": 12,
        },
        fields={"sampling.step_ends": "by_order"},
        measure=SAMPLES_DIFFER,
    ),
    Difference(
        name="adm_guidance",
        topic="Sampling (others)",
        published="ADM's classifier moves the mean of each step, by its gradient times the step's variance",
        ours="it moves the score",
        config=f"{_VP}:ddpm",
        settings={
            "guidance.name": "classifier",
            "guidance.scale": 2.0,
            "classifier.num_classes": 10,
        },
        fields={"sampling.guidance_form": "mean"},
        measure=GUIDED_SAMPLES_DIFFER,
    ),
    Difference(
        name="iddpm_levels",
        topic="Sampling (others)",
        published="EDM computes the levels of iDDPM's grid in float32",
        ours="in float64",
        size="4.6e-4 of the smallest level, 3e-3 to 3e-2 in samples",
    ),
    Difference(
        name="classifier_input",
        topic="Sampling (Song et al.)",
        published="the classifier of noisy images sees x_t, with CIFAR-10's channels whitened",
        ours="x_t / sqrt(alpha^2 + sigma^2), not whitened; `ve_cifar10` sets the fields `channel_means` and `channel_stds` too",
        config=_VP,
        fields={"classifier.scale_input": False},
        size="5.7% of the largest logit without whitening",
        case="the tests' narrow wide ResNet, measured once",
    ),
    Difference(
        name="edm_rounding",
        topic="Sampling (others)",
        published="EDM rounds the levels of grid and churn to those of an iDDPM network",
        ours="the time input is rounded alone",
        size="up to 6% of a level near sigma = 80",
    ),
    Difference(
        name="rtol_of_batch",
        topic="Likelihood",
        published="RK45 with one adaptive step size for the whole batch, in t",
        ours="Adams' method, a step size per image, in the angle arctan sqrt(sigma / alpha)",
        fields={
            "likelihood.solver": "dopri5",
            "likelihood.step_size_control": "batch",
            "likelihood.ode_variable": "t",
        },
        settings={"likelihood.trace": "exact"},
        measure=LOG_PROBS_DIFFER,
    ),
    Difference(
        name="likelihood_truncation",
        topic="Likelihood",
        published="the density at t_min counts as the density of the data",
        ours="the same number, and an estimate of the difference beside it (`eval.error_budget_images`)",
        size="`truncation` in each report",
    ),
    Difference(
        name="ema_warmup",
        topic="Training",
        published="score_sde in JAX averages with the full rate from the first step",
        ours="min(rate, (1 + n) / (10 + n)), as score_sde_pytorch does",
        config=_VP,
        fields={"ema.warmup": False},
        measure=AVERAGES_DIFFER,
    ),
    Difference(
        name="groups",
        topic="Networks",
        published="OpenAI's networks normalize 32 groups of channels whatever the width",
        ours="min(channels // 4, 32), as EDM and NCSN++; an import refuses the wrong one",
        config="configs/iddpm_cifar10.py",
        settings={"model.features": 64, "model.num_groups": 0},
        fields={"model.num_groups": 32},
        measure=NETWORKS_DIFFER,
        case="64 features",
    ),
    Difference(
        name="attention",
        topic="Networks",
        published="the first DDPM has attention after every block of the decoder; the DDPM of score_sde after the last of a resolution",
        ours="that of score_sde",
        config=f"{_VP}:ddpm",
        fields={"model.decoder_attention": "block"},
        size="35.7M parameters instead of 35.2M",
    ),
    Difference(
        name="instance_norm",
        topic="Networks",
        published="the PyTorch code of NCSNv2 has the unbiased variance in InstanceNorm++, and aligned corners",
        ours="the JAX code's biased variance and interpolation",
        config="configs/ve_cifar10.py:ncsnv2",
        settings={"model.features": 32, "data.image_size": 32},
        fields={"model.implementation": "pytorch"},
        size="1 / (n - 1) of a norm's shift, and the corners of resized features",
    ),
    Difference(
        name="test_images",
        topic="Evaluation",
        published="score_sde drops the last incomplete batch: 9,216 of 10,000 test images",
        ours="all test images",
        size="784 images",
    ),
    Difference(
        name="rounding",
        topic="Evaluation",
        published="samples are floored to 8 bits",
        ours="rounded to the nearest level",
        size="half a gray level of brightness",
    ),
    Difference(
        name="normal_cdf",
        topic="Evaluation",
        published="improved-diffusion approximates the normal distribution function by a tanh in its bound",
        ours="the function itself",
        size="3e-4 to 4e-3 bits/dim",
        case="digits and CIFAR-sized chains, measured once beside the original",
    ),
    Difference(
        name="inception_large",
        topic="Evaluation",
        published="score_sde evaluates images of 256 pixels and more with TF-Hub's Inception at their own size",
        ours="the Inception of the original FID, at 299 pixels",
        size="not comparable",
    ),
    Difference(
        name="inception_splits",
        topic="Evaluation",
        published="score_sde computes the Inception Score of all 50,000 images at once",
        ours="the mean over 10 parts, as in the literature",
        size="a lower score by sampling bias",
    ),
    Difference(
        name="celeba_crop",
        topic="Data",
        published="score_sde crops the central 140 pixels of CelebA",
        ours="the central square of 178; give an image folder or .npz with the published crop to compare",
        size="other images",
    ),
)
