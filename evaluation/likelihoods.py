"""Bits/dim of a checkpoint on the test images, by the probability-flow ODE and by bounds.

Every number of an image is kept, so that the standard errors over images, dequantization draws and
trace probes can be separated. An error budget, measured on some of the images, adds what a mean
over images cannot show: the solver's error, against tolerances ten times tighter, and the effect of
the times between 0 and t_min.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bounds.continuous import continuous_bound, decoder_step
from bounds.dequantization import Dequantized
from bounds.discrete import prior_divergence
from denoising import Denoiser
from errors import EvaluationError
from evaluation.batches import (
    Batch,
    facts,
    in_batches,
    mean,
    mean_and_error,
    nats_to_units,
    seconds_of,
)
from evaluation.report import Evaluation, Report
from experiment.experiment import Experiment
from experiment.images import as_images
from experiment.randomness import base_key
from likelihood import log_prob
from metrics import bits_per_dim as bits
from numerics.arrays import in_float64, sample_keys


def _dequantized(
    evaluation: Evaluation, indices: Int[Array, "batch"], draw: int, t_min: float
) -> Dequantized:
    """Return test images with a density at time t_min; `draw` counts dequantizations."""
    experiment = evaluation.experiment
    alpha, sigma = _coefficients(evaluation, t_min)
    return experiment.data.dequantized(
        experiment.data.splits.test,
        indices,
        seed=experiment.evaluation.seed,
        draw=draw,
        alpha=alpha,
        sigma=sigma,
        dequantizer=evaluation.checkpoint.dequantizer,
    )


def _coefficients(evaluation: Evaluation, t: float) -> tuple[float, float]:
    """Return alpha(t) and sigma(t) of the checkpoint's process."""
    sde = evaluation.checkpoint.denoiser.sde
    alpha, sigma = in_float64(lambda t: (sde.alpha(t), sde.sigma(t)), t)
    return float(alpha), float(sigma)


def _tau(evaluation: Evaluation, t_min: float) -> float | None:
    """Return half a bin in standard deviations of the noise at t_min, where that dequantizes."""
    data = evaluation.experiment.data
    if not data.dequantization.at_t_min:
        return None
    alpha, sigma = _coefficients(evaluation, t_min)
    return alpha * data.bin_width / (2 * sigma)


def _in_units(experiment: Experiment) -> Callable[[np.ndarray], np.ndarray]:
    """Return the map from log p(x) - log q of rows with a density, in nats, to the data's unit."""
    data = experiment.data
    return lambda nats: data.kind.unit.per_dim(nats, log_det=data.log_det, dims=data.size)


def _draws(experiment: Experiment, stream: str) -> Iterator[tuple[int, Array]]:
    """Yield each dequantization draw with its key; a single one of data that have a density."""
    base = base_key(experiment.evaluation.seed, stream)
    quantized = experiment.data.kind.quantized
    for draw in range(experiment.evaluation.dequantizations if quantized else 1):
        yield draw, jax.random.fold_in(base, draw)


def test_loss(evaluation: Evaluation) -> Report:
    """Compute the training objective on the test images, on gray levels if it is trained on them.

    Raises:
        EvaluationError: if a loss is NaN or infinite.
    """
    experiment = evaluation.experiment
    repeats = experiment.evaluation.loss_repeats
    base = base_key(experiment.evaluation.seed, "loss")

    @jax.jit
    def losses(key: Array, denoiser: Denoiser, x: Array, indices: Array) -> Float[Array, "batch"]:
        # One sample per call of the loss: its time and noise depend on its own key alone.
        keys = sample_keys(key, indices)
        return jax.vmap(
            lambda key, x, entry: experiment.trainer.loss(
                key, denoiser.index(entry), x[None]
            ).values[0]
        )(keys, x, denoiser.batched_fields)

    def images(indices: Int[Array, "batch"], repeat: int) -> Float[Array, "batch ..."]:
        data, seed = experiment.data, experiment.evaluation.seed
        if experiment.trainer.loss.bounds_levels:
            return as_images(data).noiseless(data.splits.test, indices)
        return data.batch(data.splits.test, indices, seed=seed, draw=repeat)

    def compute(batch: Batch) -> dict[str, Array]:
        indices = batch.indices
        return {
            str(repeat): losses(
                jax.random.fold_in(base, repeat), batch.denoiser, images(indices, repeat), indices
            )
            for repeat in range(repeats)
        }

    found = in_batches(
        evaluation, "loss", compute, depends_on=("eval.loss_repeats", "loss.", "times.", "weight.")
    )
    values = np.stack([found[str(repeat)] for repeat in range(repeats)])
    if not np.isfinite(values).all():
        nonfinite = (~np.isfinite(values)).any(axis=0).sum()
        raise EvaluationError(
            f"the loss of {nonfinite} of {values.shape[1]} test images is NaN or infinite; check "
            "the network"
        )
    estimate = bits.estimate(values[..., None], exact=True)
    return Report(
        {
            "mean": estimate.mean,
            "over_images": estimate.over_images,
            "over_draws": estimate.over_draws,
            "rows": experiment.data.kind.name,  # a loss has no unit
        },
        {"loss": values},
    )


def ode_likelihood(evaluation: Evaluation) -> Report:
    """Compute -log p per dimension by the probability-flow ODE, over draws and trace probes."""
    experiment, t_min = evaluation.experiment, evaluation.experiment.likelihood.options.t_min
    in_units, to_units, parts = _in_units(experiment), nats_to_units(experiment), []
    for draw, key in _draws(experiment, "likelihood"):

        def compute(batch: Batch, key: Array = key, draw: int = draw) -> dict[str, Array]:
            dequantized = _dequantized(evaluation, batch.indices, draw, t_min)
            return _log_prob(experiment, key, batch, dequantized)

        name = f"bits-per-dim-{draw + 1}"
        depends_on = ("likelihood.", "dequantizer.")
        parts.append(in_batches(evaluation, name, compute, depends_on=depends_on))
    nats, nfe, log_q, prior = (
        np.stack([part[name] for part in parts]) for name in ("nats", "nfe", "log_q", "prior")
    )
    exact = experiment.likelihood.options.trace == "exact"
    importance_weighted = None
    if exact and len(parts) > 1:
        importance_weighted = float(in_units(bits.importance_weighted(nats[..., 0])).mean())
    draws, images, probes = nats.shape
    summary = {
        **bits.estimate(in_units(nats), exact=exact)._asdict(),
        # The mean is the sum of the three: the prior's density of the latents with the width of the
        # bins, the divergence along the paths, and the density of the noise.
        "prior": float(in_units(prior).mean()),
        "divergence": -mean(nats.mean(axis=2) + log_q - prior) * to_units,
        "dequantization": mean(log_q) * to_units,
        "tau": _tau(evaluation, t_min),
        "nats": mean(nats) + experiment.data.log_det,  # of log p of a whole row
        "draws": draws,
        "images": images,
        "probes": None if exact else probes,
        "importance_weighted": importance_weighted,
        "nfe": float(nfe.mean()),
        "nfe_of_slowest": int(nfe.max()),
        "seconds": seconds_of(parts),
        **facts(experiment),
        **_error_budget(evaluation, in_units(parts[0]["nats"].mean(axis=1))),
    }
    name = experiment.data.kind.unit.metric
    per_image = {name: in_units(nats), "dequantization": log_q * to_units, "nfe": nfe}
    return Report(summary, per_image)


def _log_prob(
    experiment: Experiment, key: Array, batch: Batch, given: Dequantized, **options: Any
) -> dict[str, Array]:
    """Return log p(x) - log q in nats by each probe, log q, and the prior's log p of the latent."""
    options = {"options": experiment.likelihood.options, "ode": experiment.likelihood.ode} | options
    found = log_prob(key, batch.denoiser, given.x, indices=batch.indices, **options)
    return {
        "nats": found.per_probe - given.log_q[:, None],
        "nfe": found.nfe,
        "log_q": given.log_q,
        "prior": batch.denoiser.sde.prior_log_prob(found.latent),
    }


def _error_budget(
    evaluation: Evaluation, first_draw: Float[np.ndarray, "images"]
) -> dict[str, Any]:
    """Measure errors that all images share, in bits/dim, on some images.

    solver_error: with tolerances ten times tighter, less the result. truncation: the bound on the
    density of the data, less the density of data noised to t_min, which is what the ODE gives; None
    where the noise of dequantization is that of t_min, so that nothing is left out.
    prior_mismatch: KL(p_1, prior), a bound on the error of starting from the prior.
    """
    experiment = evaluation.experiment
    count, ode, t_min = (
        experiment.evaluation.error_budget_images,
        experiment.likelihood.ode,
        experiment.likelihood.options.t_min,
    )
    if not count:
        return {}
    images, in_units = len(experiment.data.splits.test), _in_units(experiment)
    chosen = np.unique(np.linspace(0, images - 1, count).astype(int))
    tight = dataclasses.replace(ode, rtol=ode.rtol / 10, atol=ode.atol / 10)
    _, key = next(_draws(experiment, "likelihood"))
    noise_key = base_key(experiment.evaluation.seed, "truncation")
    truncates = not experiment.data.dequantization.at_t_min

    def compute(batch: Batch) -> dict[str, Array]:
        given = _dequantized(evaluation, batch.indices, 0, t_min)
        tighter = _log_prob(experiment, key, batch, given, ode=tight)
        found = {
            "tight": tighter["nats"].mean(axis=1),
            "nfe": tighter["nfe"],
            "prior": prior_divergence(batch.denoiser.sde, given.x),
        }
        if truncates:
            x, indices = given.x, batch.indices
            step = decoder_step(noise_key, batch.denoiser, x, t_min=t_min, indices=indices)
            noised = _log_prob(experiment, key, batch, given._replace(x=step.x))
            found["bound"] = noised["nats"].mean(axis=1) + step.nats
        return found

    depends_on = ("eval.error_budget_images", "likelihood.", "dequantizer.")
    found = in_batches(evaluation, "error-budget", compute, depends_on=depends_on, chosen=chosen)
    used = first_draw[chosen]
    solver = in_units(found["tight"]) - used
    truncation = mean_and_error(in_units(found["bound"]) - used) if truncates else None
    return {
        "solver_error": mean_and_error(solver)
        | {"largest": float(np.abs(solver).max()), "rtol": tight.rtol, "nfe": mean(found["nfe"])},
        "truncation": truncation,
        "prior_mismatch": mean(found["prior"]) * nats_to_units(experiment),
        "error_budget_images": len(chosen),
    }


def continuous_bound_likelihood(evaluation: Evaluation) -> Report:
    """Compute bits/dim by the variational bound in continuous time, over dequantization draws.

    Images whose noise is that of the process itself are bin centers, and the last step gives the
    probabilities of their gray levels.
    """
    experiment, data = evaluation.experiment, evaluation.experiment.data
    options, discrete = experiment.likelihood.continuous_bound, data.dequantization.at_t_min
    in_units, to_units, parts = _in_units(experiment), nats_to_units(experiment), []
    for draw, key in _draws(experiment, "continuous_bound"):

        def compute(batch: Batch, key: Array = key, draw: int = draw) -> dict[str, Array]:
            if discrete:
                x = as_images(data).noiseless(data.splits.test, batch.indices)
                log_q = jnp.zeros(len(x), x.dtype)
            else:
                x, log_q = _dequantized(evaluation, batch.indices, draw, options.t_min)
            found = continuous_bound(
                key,
                batch.denoiser,
                x,
                options=options,
                pixel_levels=data.pixel_levels if discrete else None,
                indices=batch.indices,
            )
            names = ("prior", "diffusion", "decoder", "error")
            return {name: getattr(found, name) for name in names} | {"log_q": log_q}

        name = f"continuous-bound-{draw + 1}"
        depends_on = ("continuous_bound.", "dequantizer.")
        parts.append(in_batches(evaluation, name, compute, depends_on=depends_on))
    prior, diffusion, decoder, log_q = (
        np.stack([part[name] for part in parts])
        for name in ("prior", "diffusion", "decoder", "log_q")
    )
    terms = prior + diffusion + decoder + log_q
    values = terms * to_units if discrete else in_units(-terms)
    estimate = bits.estimate(values[..., None], exact=True)
    last = decoder * to_units if discrete else in_units(-decoder)  # with the width of the bins
    summary = {
        "mean": estimate.mean,
        "over_images": estimate.over_images,
        "over_draws": estimate.over_draws,  # over dequantization, times and noise
        "prior": mean(prior) * to_units,
        "diffusion": mean(diffusion) * to_units,
        "decoder": mean(last),
        "dequantization": mean(log_q) * to_units,
        "draws": len(parts),
        "images": values.shape[1],
        "nfe": options.num_times + 1,
        "seconds": seconds_of(parts),
        **facts(experiment),
    }
    return Report(summary, {"continuous_bound": values})
