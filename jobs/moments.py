"""Measure the second moments of a network, which Analytic-DPM needs."""

import math

import numpy as np
from tqdm import tqdm

from denoising import Denoiser
from experiment.experiment import Experiment, with_data_labels
from experiment.randomness import base_key
from jobs.cache import batches_of
from numerics.arrays import in_float64
from sde_lib import SDE
from solvers.moments import EpsMoments, moments_of, squared_noise
from solvers.tables import coefficients_at
from time_grids import Schedule


def measure_moments(experiment: Experiment, denoiser: Denoiser) -> EpsMoments:
    """Measure the second moments of the predicted noise over training images.

    A chain is measured at all of its timesteps, another process at `config.analytic_dpm.num_times`
    times, uniform in log-SNR down to `config.sampling.t_min`. If the discrete bound needs moments
    too, times at the same distances go on to the last one of its grid. Each time is measured with
    the same `config.analytic_dpm.num_images` images.

    Raises:
        ValueError: if the network returns NaN.
    """
    data, options, seed = experiment.data, experiment.parts.analytic_dpm, experiment.seed
    train = data.splits.train
    times = _times(experiment, denoiser.sde)
    count = min(options.num_images, len(train))
    chosen = np.random.default_rng(seed).choice(len(train), count, replace=False)
    key = base_key(seed, "moments")
    parts = []
    with tqdm(total=count, desc="moments", dynamic_ncols=True, mininterval=0.5) as bar:
        for rows in batches_of(count, experiment.evaluation.batch_size):
            placed = experiment.parallel.place(chosen[rows])
            x = data.batch(train, placed, seed=seed, draw=0)
            labeled = with_data_labels(experiment, denoiser, placed, data.splits.train_labels)
            squares = squared_noise(key, labeled, x, times, placed)
            parts.append(experiment.parallel.fetch(squares)[:, : len(rows)])
            bar.update(len(rows))
    return moments_of(denoiser.sde, times, parts)


def _times(experiment: Experiment, sde: SDE) -> np.ndarray:
    if getattr(sde, "num_timesteps", None):
        return Schedule(grid="timesteps").of(sde)
    steps = experiment.parts.analytic_dpm.num_times - 1
    times = Schedule(grid="log_snr", steps=steps, t_min=experiment.sampler.solve.t_min).of(sde)
    bound = experiment.likelihood.discrete_bound
    last = bound.schedule.of(sde)[-1]
    if "moments" not in bound.options.needs or last >= times[-1]:
        return times
    first, middle, end = coefficients_at(sde, np.array([1.0, times[-1], last])).half_log_snr
    more = math.ceil((end - middle) / (middle - first) * steps)
    snr = np.linspace(middle, end, more + 1)[1:-1] * 2
    between = in_float64(sde.time_of_log_snr, snr)
    return np.concatenate([times, between, [last]])
