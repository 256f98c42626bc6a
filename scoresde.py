"""Score-based generative modeling through SDEs, as a library.

import jax
import scoresde as ss

model = ss.load("digits")  # or the folder of a run, such as "runs/vp_digits"
key = jax.random.key(0)
x = ss.sample(key, model.denoiser, (64, *model.shape), solver=ss.UniPC(), steps=20).x
nats = ss.log_prob(key, model.denoiser, x[:8]).nats
"""

import runpy
import sys

if __name__ == "__main__":  # python -m scoresde is the program, which imports what it needs
    runpy.run_module("main", run_name="__main__", alter_sys=True)
    sys.exit()

from denoising import Denoiser, Prediction
from experiment.build import build
from experiment.configurations import load_configuration
from guidance.autoguidance import Autoguidance
from guidance.base import guide
from guidance.classifier import Classifier, ClassifierGuidance
from guidance.classifier_free import ClassifierFreeGuidance
from guidance.posterior import DPS, LossGuidance, PiGDM
from guidance.projection import Projection
from jobs.demo import serve
from jobs.restore import TrainedModel
from jobs.shipped import load
from likelihood import LikelihoodOptions, log_prob
from losses import LOSSES, ScoreMatching
from numerics.clipping import Clipping
from numerics.ode import ODEOptions
from objectives.times import TIMES
from objectives.weights import WEIGHTS
from sampling import Samples, sample
from sde_lib import SDES, VESDE, VPSDE, SubVPSDE
from solvers import SOLVERS
from solvers.ddim import DDIM
from solvers.dpm_solver import DPMSolver
from solvers.heun import Heun
from solvers.ode import sample_ode
from solvers.predictor_corrector import PredictorCorrector
from solvers.unipc import UniPC
from time_grids import Schedule

__all__ = [
    "DDIM",
    "DPS",
    "LOSSES",
    "SDES",
    "SOLVERS",
    "TIMES",
    "VESDE",
    "VPSDE",
    "WEIGHTS",
    "Autoguidance",
    "Classifier",
    "ClassifierFreeGuidance",
    "ClassifierGuidance",
    "Clipping",
    "DPMSolver",
    "Denoiser",
    "Heun",
    "LikelihoodOptions",
    "LossGuidance",
    "ODEOptions",
    "PiGDM",
    "Prediction",
    "PredictorCorrector",
    "Projection",
    "Samples",
    "Schedule",
    "ScoreMatching",
    "SubVPSDE",
    "TrainedModel",
    "UniPC",
    "build",
    "guide",
    "load",
    "load_configuration",
    "log_prob",
    "sample",
    "sample_ode",
    "serve",
]
