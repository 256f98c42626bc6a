"""The variational bound of a chain on the test images, and what its bits bring about."""

import numpy as np
from jaxtyping import Array, Float

from bounds.discrete import discrete_bound, received_images
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
from experiment.experiment import with_data_labels
from experiment.images import as_images
from experiment.randomness import base_key
from files.pictures import image_grid
from files.plots import Panel, Series, Strip
from jobs.cache import Arrays

_SHOWN, _RATES = 5, 8  # images and rates of a picture


def discrete_bound_likelihood(evaluation: Evaluation) -> Report:
    """Compute bits/dim by the variational bound of a chain: L_T, every L_t, and L_0."""
    found, times = _discrete_bound(evaluation)
    to_units = nats_to_units(evaluation.experiment)
    terms, prior, decoder = (found[name] * to_units for name in ("terms", "prior", "decoder"))
    total = prior + terms.sum(axis=1) + decoder
    summary = {
        "mean": mean(total),
        "over_images": mean_and_error(total)["standard_error"],
        "L_T": mean(prior),
        "L_t": mean(terms.sum(axis=1)),
        "L_0": mean(decoder),
        "images": len(total),
        "nfe": len(times),
        "seconds": seconds_of([found]),
        **facts(evaluation.experiment),
    }
    per_image = {
        "discrete_bound": total,
        "discrete_bound_terms": np.concatenate([prior[:, None], terms, decoder[:, None]], axis=1),
        "discrete_bound_times": times,
    }
    return Report(summary, per_image)


def rate_distortion(evaluation: Evaluation) -> Report:
    """Compute what is known of an image after a part of its bits (Ho et al. 2020, Section 4.3).

    When the steps to time t are sent, L_T and the terms L_i so far are paid, and the receiver
    predicts x0 from x_t. The distortion is the root mean square over all images, of 255.
    """
    found, times = _discrete_bound(evaluation)
    data = as_images(evaluation.experiment.data)
    sent = np.concatenate([found["prior"][:, None], found["terms"]], axis=1)
    rate = np.cumsum(sent, axis=1).mean(axis=0) * nats_to_units(evaluation.experiment)
    gray = 255 / (data.pixel_levels.high - data.pixel_levels.low)
    distortion = gray * np.sqrt(found["squares"].mean(axis=0))
    panel = Panel(
        title="rate and distortion",
        x_label="bits/dim",
        y_label="error of the predicted image (rms, of 255)",
        series=[Series(label="predicted x0", x=rate, y=distortion)],
        from_zero=True,
        note="without the last bits, which make it exact",
    )
    strip = _received(evaluation, times, rate)
    curve = {"times": times.tolist(), "rate": rate.tolist(), "distortion": distortion.tolist()}
    return Report(curve | {"images": len(sent)}, {}, (panel, strip))


def _received(
    evaluation: Evaluation, times: Float[np.ndarray, "times"], rate: Float[np.ndarray, "times"]
) -> Strip:
    """Return what is predicted of the first test images at some rates; they come last.

    The first bits change most, so the rates are denser there. The layout is that of Ho et al. 2020,
    Figure 6 (progressive generation), for given images.
    """
    experiment, data = evaluation.experiment, as_images(evaluation.experiment.data)
    test, count = data.splits, min(_SHOWN, len(data.splits.test))
    wanted = rate[0] + (rate[-1] - rate[0]) * np.linspace(0, 1, _RATES) ** 2
    chosen = np.unique(np.abs(rate[:, None] - wanted).argmin(axis=0))
    indices = experiment.parallel.place(np.arange(count))
    denoiser = experiment.likelihood.discrete_bound.of(evaluation.checkpoint, data.limits)[0]
    x0 = data.noiseless(test.test, indices)
    found = received_images(
        base_key(experiment.evaluation.seed, "discrete_bound"),
        with_data_labels(experiment, denoiser, indices, test.test_labels),
        x0,
        times=times,
        chosen=chosen,
        indices=indices,
    )
    images = [data.decode(experiment.parallel.fetch(each)[:count]) for each in (*found, x0)]
    return Strip(
        title="predicted images",
        x_label="bits/dim so far",
        picture=image_grid(np.concatenate(np.stack(images, axis=1)), columns=len(images)),
        labels=[*(f"{rate[i]:.2f}" for i in chosen), "all"],
    )


def _discrete_bound(evaluation: Evaluation) -> tuple[Arrays, Float[np.ndarray, "times"]]:
    """Return the parts of the discrete bound of each image, in nats, and the times."""
    experiment, data = evaluation.experiment, as_images(evaluation.experiment.data)
    denoiser, times = experiment.likelihood.discrete_bound.of(evaluation.checkpoint, data.limits)
    key = base_key(experiment.evaluation.seed, "discrete_bound")

    def compute(batch: Batch) -> dict[str, Array]:
        found = discrete_bound(
            key,
            batch.denoiser,
            data.noiseless(data.splits.test, batch.indices),
            times=times,
            pixel_levels=data.pixel_levels,
            options=experiment.likelihood.discrete_bound.options,
            indices=batch.indices,
        )
        parts = {"prior": found.prior, "terms": found.terms.T, "decoder": found.decoder}
        return parts | {"squares": found.squares.T}

    found = in_batches(
        evaluation,
        "discrete-bound",
        compute,
        depends_on=("discrete_bound.", "needs."),
        denoiser=denoiser,
    )
    return found, times
