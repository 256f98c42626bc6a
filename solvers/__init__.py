"""Solver families, one file each, and their names.

`sampling.sample` runs a `sampling.Solver` in fixed steps along a `time_grids.Schedule`. Adaptive
samplers choose their own steps; each is a function with options of its own.
"""

from numerics.ode import ODEOptions
from numerics.stochastic import SDEOptions
from solvers.analytic_dpm import AnalyticDPM
from solvers.bridge import BridgeSteps
from solvers.consistency import ConsistencySampler
from solvers.ddim import DDIM
from solvers.deis import DEIS
from solvers.dpm_adaptive import DPMAdaptive, sample_adaptive
from solvers.dpm_solver import DPMSolver
from solvers.heun import Heun
from solvers.langevin import LangevinDynamics
from solvers.mala import MALA
from solvers.ode import FlowOptions, sample_ode
from solvers.predictor_corrector import PredictorCorrector
from solvers.sde import ReverseSDE, sample_sde
from solvers.unipc import UniPC

SOLVERS = {
    "pc": PredictorCorrector,
    "ddim": DDIM,
    "consistency": ConsistencySampler,
    "dpm_solver": DPMSolver,
    "unipc": UniPC,
    "deis": DEIS,
    "heun": Heun,
    "analytic": AnalyticDPM,
    "langevin": LangevinDynamics,
    "mala": MALA,
    "bridge": BridgeSteps,
}

# name -> (sampler, its options by keyword)
ADAPTIVE = {
    "dpm_adaptive": (sample_adaptive, {"options": DPMAdaptive}),
    "ode": (sample_ode, {"options": FlowOptions, "ode": ODEOptions}),
    "sde": (sample_sde, {"options": ReverseSDE, "solving": SDEOptions}),
}
