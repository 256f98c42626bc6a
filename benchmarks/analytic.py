"""Optimal variances of reverse steps: bits/dim of the bound, and samples, against their number.

    python benchmarks/analytic.py
    python benchmarks/analytic.py digits
    python benchmarks/analytic.py digits --tables

Alone, it trains variance heads on points of a Gaussian mixture, whose optimal variances are known,
and prints the errors of what they predict. With a run on images, its folder or a name of
`ss.load`, it measures the moments and trains both heads for it, in memory. Then it computes the
discrete bound in bits/dim of the test images, with the same noises for all, by both decoders; and
the Frechet distance of pixels from samples to the training images, from the same latents. Finished
cells are not computed again: benchmarks/results/analytic.jsonl.
"""

import argparse
import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.tree_util import Partial
from runs import ROOT, Results, discrete_bits, markdown_table
from tqdm import trange

sys.path.insert(0, str(ROOT / "tests"))

CHOICES = {  # variance, target of the head, choice of times
    "small": ("small", "", "grid"),
    "large": ("large", "", "grid"),
    "analytic": ("analytic", "", "grid"),
    "analytic, optimal times": ("analytic", "", "optimal"),
    "SN": ("diagonal", "squared_noise", "grid"),
    "NPR": ("diagonal", "residual", "grid"),
    "NPR, optimal times": ("diagonal", "residual", "optimal"),
}


DECODERS = {"chain": 1e-5, "tweedie": 0.02}  # with the smallest time of each

RESULTS = Results("analytic", keys=("quantity", "run", "choice", "steps"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", default="", help="its workdir, or a name of ss.load")
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--sampling_steps", type=int, nargs="*", default=[5, 10, 20])
    parser.add_argument("--training_steps", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=1500)
    parser.add_argument("--tables", action="store_true")
    options = parser.parse_args()
    if options.tables:
        for quantity in QUANTITIES:
            print(table(quantity, options.run))
    elif not options.run:
        of_mixture(options.training_steps)
    else:
        of_run(options)


QUANTITIES = {  # heads of the tables
    "chain": "bits/dim, `decoder=chain`, steps",
    "tweedie": "bits/dim, `decoder=tweedie`, steps",
    "frechet": "Frechet distance, steps",
}


def table(quantity: str, run: str) -> str:
    """Return a table of a run: a choice each row, by the number of steps."""
    cells = {
        (line["choice"], line["steps"]): f"{line['value']:.3f}"
        for line in RESULTS.lines()
        if (line["quantity"], line["run"]) == (quantity, run)
    }
    steps = sorted({steps for _, steps in cells})
    rows = [(choice, *(cells.get((choice, n), "") for n in steps)) for choice in CHOICES]
    return markdown_table((QUANTITIES[quantity], *map(str, steps)), rows)


def of_mixture(steps: int) -> None:
    """Print how far the heads are from the truth: rms of log(head / truth), and its mean."""
    from analytic import standardized_mixture

    from models.mlp import MLP
    from objectives.uncertainty import TARGETS, TrainedHead, VarianceHead, VarianceHeadLoss
    from sde_lib import VPSDE
    from solvers.tables import coefficients_at
    from training.objective import Context

    data, sde, network = standardized_mixture(), VPSDE(), MLP(features=64, depth=2)
    x0, context = (
        jnp.asarray(data.sample(0, 50000), jnp.float32),
        Context(teacher=data.denoiser(sde)),
    )
    times, apply = (
        np.array([0.7, 0.5, 0.3, 0.1, 0.03]),
        functools.partial(network.apply, train=False),
    )
    at = coefficients_at(sde, times)
    for target in TARGETS:
        loss = VarianceHeadLoss(target=target, t_min=1e-2)
        params = network.init(jax.random.key(0), x0[:1], jnp.zeros(1), train=False)["params"]
        optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

        def head_of(params: Any, target: str = target) -> VarianceHead:
            return VarianceHead(network=Partial(apply, {"params": params}), target=target)

        @jax.jit
        def train(params: Any, loss: Any = loss, of: Any = head_of, optimizer: Any = optimizer):
            def step(carry: Any, key: jax.Array) -> tuple[Any, None]:
                params, state = carry
                batch = x0[jax.random.randint(key, (512,), 0, len(x0))]

                def mean_loss(params: Any) -> jax.Array:
                    return loss(key, TrainedHead(head=of(params)), batch, context).values.mean()

                updates, state = optimizer.update(jax.grad(mean_loss)(params), state)
                return (optax.apply_updates(params, updates), state), None

            keys = jax.random.split(jax.random.key(1), steps)
            return jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0]

        head = head_of(train(params))
        for i, t in enumerate(times):
            noise = np.random.default_rng(i).normal(size=(500, 2))
            x = at.alpha[i] * data.sample(9 + i, 500) + at.sigma[i] * noise
            given = jnp.asarray(x, jnp.float32), jnp.full(500, t)
            found = np.asarray(head(sde, *given, context.teacher.predict(*given).eps), np.float64)
            posteriors = [data.posterior(at.alpha[i] * np.eye(2), row, at.sigma[i]) for row in x]
            scale = (at.alpha[i] / at.sigma[i]) ** 2
            truth = scale * np.array([np.diag(each.covariance) for each in posteriors])
            off = (found - truth) / truth.mean()
            print(
                f"{target:14} t={t:4}  mean truth {truth.mean():.4f}  error over it: rms "
                f"{np.sqrt(np.mean(off**2)):.3f}  mean {off.mean():+.3f}"
            )


def of_run(options: argparse.Namespace) -> None:
    """Compute the cells of a run."""
    import scoresde as ss
    from experiment.build import build
    from jobs.moments import measure_moments

    model = ss.load(options.run)
    config = {k: dict(v) if isinstance(v, dict) else v for k, v in model.experiment.config.items()}
    bound = {"variance": "analytic", "grid": "log_snr", "steps": 10}
    config["discrete_bound"] |= bound | {"t_min": min(DECODERS.values())}
    moments = measure_moments(build(config), model.denoiser)

    @functools.cache
    def head(target: str) -> Any:
        return trained(config, target, model, options.training_steps) if target else None

    def compute(quantity: str, of: Callable[..., float], steps: int) -> None:
        for choice, (variance, target, times) in CHOICES.items():
            key = {"quantity": quantity, "run": options.run, "choice": choice, "steps": steps}
            if not RESULTS.has(**key):
                more = {"moments": moments, "variance_head": head(target)}
                checkpoint = dataclasses.replace(model.checkpoint, **more)
                fields = {"variance": variance, "timestep_choice": times}
                RESULTS.add(key | {"value": float(of(config, fields, checkpoint, steps))})

    for decoder, t_min in DECODERS.items():
        for steps in options.steps:
            fields = {"decoder": decoder, "t_min": t_min}
            compute(decoder, functools.partial(bits, decoding=fields), steps)
    for steps in options.sampling_steps:
        compute("frechet", functools.partial(distance, count=options.samples), steps)


def trained(config: dict, target: str, model: Any, steps: int) -> Any:
    """Return a variance head for the network of a run, trained in memory."""
    from experiment.build import build
    from experiment.randomness import base_key
    from jobs.training_job import variance_head_job

    fields = {"target": target, "steps": steps, "lr": 2e-3}
    experiment = build(config | {"variance_head": config["variance_head"] | fields})
    job = variance_head_job(experiment, model.denoiser)
    batches, step = job.batches(), job.trainer.compiled_step()
    state = job.trainer.init_state(base_key(job.seed, "init"))
    for k in trange(steps, desc=target, mininterval=5):
        state, _ = step(base_key(job.seed, "training"), state, batches.at(k), None, model.denoiser)
    return experiment.parts.variance_head.head(state.ema_params)


def bits(config: dict, fields: dict, checkpoint: Any, steps: int, *, decoding: dict) -> float:
    """Return the mean of the discrete bound on the test images in bits/dim."""
    return discrete_bits(config, checkpoint, fields | decoding | {"steps": steps})


def distance(config: dict, fields: dict, checkpoint: Any, steps: int, *, count: int) -> float:
    """Return the Frechet distance between the pixels of samples and of the training images."""
    from experiment.build import build
    from metrics.frechet import Statistics, frechet_distance

    sampling = dict.fromkeys(config["sampling"])
    sampling |= {name: config["sampling"][name] for name in ("seed", "label", "t_min")}
    sampling |= {"grid": "log_snr", "steps": steps, "predictor": "ancestral", "corrector": "none"}
    optimal = fields["variance"] in ("analytic", "diagonal")
    if optimal:
        sampling |= {"name": "analytic", **fields, "clip_x0_range": 1.0}
    else:
        sampling |= {"name": "pc", "variance": fields["variance"]}
    experiment = build(config | {"sampling": sampling})
    samples = experiment.sampler.draw(checkpoint, np.arange(count)).samples
    data, found = experiment.data, []
    for rows in (samples, data.as_samples(data.splits.train[:])):
        pixels = np.asarray(rows, np.float64).reshape(len(rows), -1) / 255
        found.append(Statistics(len(pixels), pixels.mean(axis=0), np.cov(pixels.T)))
    return float(frechet_distance(*found))


if __name__ == "__main__":
    main()
