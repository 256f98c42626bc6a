"""Measuring what Analytic-DPM needs to know of a network: `--mode=moments`."""

import numpy as np
from tqdm import tqdm

from data import batches
from denoising import Denoiser
from experiment.experiment import Experiment
from jobs.cache import batches_of
from solvers.moments import EpsMoments, moments_of, squared_noise
from time_grids import Schedule


def measure_moments(experiment: Experiment, denoiser: Denoiser) -> EpsMoments:
    """The second moments of the network's eps, over training images and all noise levels.

    Of a chain all levels are measured, of another process `config.moments.times` times, even in
    log-SNR, down to `config.sampling.t_min`; each with the same `config.moments.images` images.
    """
    settings, train = experiment.config["moments"], experiment.data.train
    if getattr(denoiser.sde, "levels", None):
        schedule = Schedule(grid="levels")
    else:
        t_min = experiment.config["sampling"]["t_min"]
        schedule = Schedule(grid="log_snr", steps=settings["times"] - 1, t_min=t_min)
    times = schedule.of(denoiser.sde)
    count = min(settings["images"], len(train))
    seed = experiment.config["seed"]
    chosen = np.random.default_rng(seed).choice(len(train), count, replace=False)
    key = experiment.key(seed, "moments")
    parts = []
    with tqdm(total=count, desc="moments", dynamic_ncols=True, mininterval=0.5) as bar:
        for rows in batches_of(count, experiment.config["eval"]["batch_size"]):
            placed = experiment.place(chosen[rows])
            images = batches.test_batch(
                train,
                experiment.parallel.fetch(placed),
                seed=seed,
                draw=0,
                quantizer=experiment.data.quantizer,
                scaler=experiment.scaler,
                dequantize=experiment.config["data"]["dequantize"],
            )
            labelled = experiment.with_labels(denoiser, placed, experiment.data.train_labels)
            x = experiment.parallel.split_rows(images)
            squares = squared_noise(key, labelled, x, times, placed)
            parts.append(experiment.parallel.fetch(squares)[:, : len(rows)])
            bar.update(len(rows))
    return moments_of(denoiser.sde, times, parts)
