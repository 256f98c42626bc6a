"""The unnormalized log-density of an energy on the test rows."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from denoising import Denoiser
from evaluation.batches import Batch, facts, in_batches, mean, mean_and_error, seconds_of
from evaluation.report import Evaluation, Report
from jobs.densities import density_on_grid


def log_density(evaluation: Evaluation) -> Report:
    """Compute log p up to a constant, at the noise level of config.likelihood.t_min, in nats.

    For points of the plane, the constant is integrated on a grid. The result then has the
    log-likelihood too, in the units of the data.
    """
    experiment, data = evaluation.experiment, evaluation.experiment.data
    t = experiment.likelihood.options.t_min

    def compute(batch: Batch) -> dict[str, Array]:
        x = data.batch(data.splits.test, batch.indices, seed=experiment.evaluation.seed, draw=0)
        return {"log_density": _log_density(batch.denoiser, x, t)}

    found = in_batches(evaluation, "log-density", compute, depends_on=("likelihood.t_min",))
    values = found["log_density"]
    summary = {
        "mean": mean(values),
        "over_images": mean_and_error(values)["standard_error"],
        "t": t,
        "log_z": None,
        "nats": None,
        "images": len(values),
        "seconds": seconds_of([found]),
        **facts(experiment),
    }
    if data.shape == (2,) and not experiment.model.num_classes:
        rows = np.asarray(data.encode(data.splits.train[:]))
        log_z = density_on_grid(evaluation.checkpoint.denoiser, rows, t).log_z
        summary |= {"log_z": log_z, "nats": summary["mean"] - log_z + data.log_det}
    return Report(summary, {"log_density": values})


@jax.jit
def _log_density(
    denoiser: Denoiser, x: Float[Array, "batch ..."], t: float | Float[Array, ""]
) -> Float[Array, "batch"]:
    return denoiser.log_density(x, jnp.asarray(t, x.dtype))
