"""Bits/dim of a checkpoint on the test images, by the flow and by bounds, with an error budget.

Every number of an image is kept, so that the standard errors over images, dequantization draws and
trace probes are told apart. What a mean over images cannot show is measured on some of them: the
solver's error, against tolerances ten times tighter, and what the time from 0 to t_min hides.
"""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from bounds.continuous import continuous_bound, decoder_step
from bounds.discrete import PixelLevels, discrete_bound, prior_divergence
from denoising import Denoiser
from errors import EvaluationError
from evaluation.report import WHAT_IS_JUDGED, Report
from experiment.experiment import Experiment
from jobs.cache import Arrays, Resumable
from likelihood import log_prob
from metrics import bits_per_dim as bits
from numerics.arrays import sample_keys


class _Batch(NamedTuple):
    """Test images on the devices: their numbers, and the denoiser that knows their classes."""

    numbers: Int[Array, "batch"]
    denoiser: Denoiser


def _batches(
    experiment: Experiment,
    denoiser: Denoiser,
    work: Resumable,
    name: str,
    compute: Callable[[_Batch], dict[str, Array]],
    *,
    of: tuple[str, ...],
    chosen: Int[np.ndarray, "images"] | None = None,
) -> Arrays:
    """`compute` of the test images (or those chosen), joined, with the seconds each image took.

    `of` are the parts of the protocol that the numbers depend on, beside network and images.
    """
    chosen = np.arange(len(experiment.data.test)) if chosen is None else chosen

    def computed(rows: Int[np.ndarray, "batch"]) -> Arrays:
        start = time.perf_counter()
        numbers = experiment.place(chosen[rows])
        labelled = experiment.with_labels(denoiser, numbers, experiment.data.test_labels)
        answers = {
            key: experiment.layout.fetch(value)[: len(rows)]
            for key, value in compute(_Batch(numbers, labelled)).items()
        }
        seconds = (time.perf_counter() - start) / len(rows)
        return answers | {"seconds": np.full(len(rows), seconds)}

    stamped = work.stamped(name, *WHAT_IS_JUDGED, "eval.seed", *of)
    return work.gather(stamped, len(chosen), experiment.config["eval"]["batch_size"], computed)


def _in_bits(experiment: Experiment) -> Callable[[np.ndarray], np.ndarray]:
    """From log-densities of dequantized images to bits/dim."""
    dims = experiment.data.test[0].size
    log_det = experiment.data.quantizer.log_det(dims) + experiment.scaler.log_det(dims)
    return lambda nats: bits.bits_per_dim(nats, log_det=log_det, dims=dims)


def _seconds(parts: list[Arrays]) -> float:
    return round(float(sum(part["seconds"].sum() for part in parts)), 1)


def _draws(experiment: Experiment, stream: str) -> Iterator[tuple[int, Array]]:
    """Each dequantization draw with its key."""
    settings = experiment.config["eval"]
    base = experiment.key(settings["seed"], stream)
    for draw in range(settings["dequantizations"]):
        yield draw, jax.random.fold_in(base, draw)


# --- the training objective -------------------------------------------------------------------


def test_loss(experiment: Experiment, denoiser: Denoiser, work: Resumable) -> Report:
    """The training objective on the test images."""
    settings, data = experiment.config["eval"], experiment.config["data"]
    base = experiment.key(settings["seed"], "loss")

    @jax.jit
    def losses(key: Array, denoiser: Denoiser, x: Array, indices: Array) -> Float[Array, "batch"]:
        # One sample a call of the loss: its time and noise depend on its own key alone.
        keys = sample_keys(key, indices)
        return jax.vmap(
            lambda key, x, entry: experiment.loss(key, denoiser.index(entry), x[None])[0]
        )(keys, x, denoiser.batched_fields)

    def compute(batch: _Batch) -> dict[str, Array]:
        return {
            str(repeat): losses(
                jax.random.fold_in(base, repeat),
                batch.denoiser,
                experiment.test_batch(batch.numbers, repeat, dequantize=data["dequantize"]),
                batch.numbers,
            )
            for repeat in range(settings["loss_repeats"])
        }

    of = ("eval.loss_repeats", "loss.")
    found = _batches(experiment, denoiser, work, "loss", compute, of=of)
    values = np.stack([found[str(repeat)] for repeat in range(settings["loss_repeats"])])
    if not np.isfinite(values).all():
        broken = (~np.isfinite(values)).any(axis=0).sum()
        raise EvaluationError(
            f"the loss of {broken} of {values.shape[1]} test images is NaN or infinite; check the "
            "network"
        )
    estimate = bits.estimate(values[..., None], exact=True)
    return Report(
        {
            "mean": estimate.mean,
            "over_images": estimate.over_images,
            "over_draws": estimate.over_draws,
        },
        {"loss": values},
    )


# --- the flow ---------------------------------------------------------------------------------


def flow_bits(experiment: Experiment, denoiser: Denoiser, work: Resumable) -> Report:
    """Bits/dim by the probability-flow ODE, over dequantization draws and trace probes."""
    in_bits = _in_bits(experiment)
    parts = []
    for draw, key in _draws(experiment, "likelihood"):

        def compute(batch: _Batch, key: Array = key, draw: int = draw) -> dict[str, Array]:
            x = experiment.test_batch(batch.numbers, draw)
            return _flow(experiment, key, batch, x)

        name = f"bits-per-dim-{draw + 1}"
        parts.append(_batches(experiment, denoiser, work, name, compute, of=("likelihood.",)))
    nats = np.stack([part["nats"] for part in parts])
    nfe = np.stack([part["nfe"] for part in parts])
    exact = experiment.likelihood.trace == "exact"
    tightest = None
    if exact and len(parts) > 1:
        tightest = float(in_bits(bits.importance_weighted(nats[..., 0])).mean())
    draws, images, probes = nats.shape
    summary = {
        **bits.estimate(in_bits(nats), exact=exact)._asdict(),
        "draws": draws,
        "images": images,
        "probes": None if exact else probes,
        "importance_weighted": tightest,
        "nfe": float(nfe.mean()),
        "nfe_of_slowest": int(nfe.max()),
        "seconds": _seconds(parts),
        **_budget(experiment, denoiser, work, in_bits(parts[0]["nats"].mean(axis=1))),
    }
    return Report(summary, {"bits_per_dim": in_bits(nats), "nfe": nfe})


def _flow(
    experiment: Experiment, key: Array, batch: _Batch, x: Array, **options: Any
) -> dict[str, Array]:
    given = {"options": experiment.likelihood, "ode": experiment.ode} | options
    found = log_prob(key, batch.denoiser, x, indices=batch.numbers, **given)
    return {"nats": found.per_probe, "nfe": found.nfe}


def _budget(
    experiment: Experiment,
    denoiser: Denoiser,
    work: Resumable,
    first_draw: Float[np.ndarray, "images"],
) -> dict[str, Any]:
    """What some images tell of errors that all of them share, in bits/dim.

    solver_error: tight tolerances less those used. truncation: the bound on the density of the data
    themselves less the density of the data at t_min, which is what the flow knows. prior_mismatch:
    how much of the bound is due to noised data not being the prior's, at most.
    """
    settings = experiment.config["eval"]
    if not settings["ladder_images"]:
        return {}
    images, in_bits = len(experiment.data.test), _in_bits(experiment)
    chosen = np.unique(np.linspace(0, images - 1, settings["ladder_images"]).astype(int))
    tight = dataclasses.replace(
        experiment.ode, rtol=experiment.ode.rtol / 10, atol=experiment.ode.atol / 10
    )
    _, key = next(_draws(experiment, "likelihood"))
    noise_key = experiment.key(settings["seed"], "truncation")

    def compute(batch: _Batch) -> dict[str, Array]:
        x = experiment.test_batch(batch.numbers, 0)
        step = decoder_step(
            noise_key,
            batch.denoiser,
            x,
            t_min=experiment.likelihood.t_min,
            indices=batch.numbers,
        )
        tighter = _flow(experiment, key, batch, x, ode=tight)
        noised = _flow(experiment, key, batch, step.x)
        return {
            "tight": tighter["nats"].mean(axis=1),
            "nfe": tighter["nfe"],
            "bound": noised["nats"].mean(axis=1) + step.nats,
            "prior": prior_divergence(denoiser.sde, x),
        }

    of = ("eval.ladder_images", "likelihood.")
    found = _batches(experiment, denoiser, work, "ladder", compute, of=of, chosen=chosen)
    used = first_draw[chosen]
    solver, truncation = in_bits(found["tight"]) - used, in_bits(found["bound"]) - used
    return {
        "solver_error": _mean_and_error(solver)
        | {"largest": float(np.abs(solver).max()), "rtol": tight.rtol, "nfe": _mean(found["nfe"])},
        "truncation": _mean_and_error(truncation),
        "prior_mismatch": _mean(found["prior"]) / (experiment.data.test[0].size * np.log(2)),
        "ladder_images": len(chosen),
    }


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values, dtype=np.float64))


def _mean_and_error(values: Float[np.ndarray, "images"]) -> dict[str, float | None]:
    estimate = bits.estimate(values[None, :, None])
    return {"mean": estimate.mean, "standard_error": estimate.over_images}


# --- bounds -----------------------------------------------------------------------------------


def discrete_bound_bits(experiment: Experiment, denoiser: Denoiser, work: Resumable) -> Report:
    """Bits/dim by the variational bound of a chain: L_T, every L_t, and L_0, term by term."""
    settings, data, scaler = experiment.config["eval"], experiment.data, experiment.scaler
    options, times, clipping = experiment.discrete_bound
    pixel_levels = PixelLevels(gray_levels=data.quantizer.levels, low=scaler.low, high=scaler.high)
    clipped = dataclasses.replace(denoiser, clipping=clipping)
    key = experiment.key(settings["seed"], "discrete_bound")

    def compute(batch: _Batch) -> dict[str, Array]:
        x0 = experiment.test_batch(batch.numbers, 0, dequantize=False)
        found = discrete_bound(
            key,
            batch.denoiser,
            x0,
            times=times,
            pixel_levels=pixel_levels,
            options=options,
            indices=batch.numbers,
        )
        return {"prior": found.prior, "terms": found.terms.T, "decoder": found.decoder}

    of = ("discrete_bound.",)
    found = _batches(experiment, clipped, work, "discrete-bound", compute, of=of)
    to_bits = 1 / (data.test[0].size * np.log(2))
    terms, prior, decoder = (found[name] * to_bits for name in ("terms", "prior", "decoder"))
    total = prior + terms.sum(axis=1) + decoder
    summary = {
        "mean": _mean(total),
        "over_images": _mean_and_error(total)["standard_error"],
        "L_T": _mean(prior),
        "L_t": _mean(terms.sum(axis=1)),
        "L_0": _mean(decoder),
        "images": len(total),
        "nfe": len(times),
        "seconds": _seconds([found]),
    }
    return Report(
        summary,
        {
            "discrete_bound": total,
            "discrete_bound_terms": np.concatenate(
                [prior[:, None], terms, decoder[:, None]], axis=1
            ),
            "discrete_bound_times": times,
        },
    )


def continuous_bound_bits(experiment: Experiment, denoiser: Denoiser, work: Resumable) -> Report:
    """Bits/dim by the variational bound in continuous time, over dequantization draws."""
    in_bits, dims = _in_bits(experiment), experiment.data.test[0].size
    parts = []
    for draw, key in _draws(experiment, "continuous_bound"):

        def compute(batch: _Batch, key: Array = key, draw: int = draw) -> dict[str, Array]:
            x = experiment.test_batch(batch.numbers, draw)
            found = continuous_bound(
                key, batch.denoiser, x, options=experiment.continuous_bound, indices=batch.numbers
            )
            return {
                name: getattr(found, name) for name in ("prior", "diffusion", "decoder", "error")
            }

        name = f"continuous-bound-{draw + 1}"
        parts.append(_batches(experiment, denoiser, work, name, compute, of=("continuous_bound.",)))
    prior, diffusion, decoder = (
        np.stack([part[name] for part in parts]) for name in ("prior", "diffusion", "decoder")
    )
    values = in_bits(-(prior + diffusion + decoder))
    estimate = bits.estimate(values[..., None], exact=True)
    to_bits = 1 / (dims * np.log(2))
    summary = {
        "mean": estimate.mean,
        "over_images": estimate.over_images,
        "over_draws": estimate.over_draws,  # of dequantization, times and noise
        "prior": _mean(prior) * to_bits,
        "diffusion": _mean(diffusion) * to_bits,
        "decoder": float(in_bits(np.float64(-_mean(decoder)))),
        "draws": len(parts),
        "images": values.shape[1],
        "nfe": experiment.continuous_bound.num_times + 1,
        "seconds": _seconds(parts),
    }
    return Report(summary, {"continuous_bound": values})
