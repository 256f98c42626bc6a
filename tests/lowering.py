"""Lower the programs of configurations for other platforms than this one; nothing is executed.

    python tests/lowering.py                  # all configurations
    python tests/lowering.py vp_cifar10 dit   # those with such a name

Networks are narrow and shallow, and images small. Whatever chooses code is as configured: layers,
attention, objective, process, sampler, guidance, dtype.
"""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import likelihood
from experiment.build import build
from experiment.configurations import known_configurations, load_configuration
from jobs.programs import Program, sampling_step, train_step
from numerics.ode import ODEOptions

PLATFORMS = ("cuda", "tpu")
DTYPES = ("float32", "bfloat16")
# At this size an upsampler's small image still has a pixel for each of its resolutions.
SIZE = 16


def reduced(config, dtype):
    """A copy of a configuration with a small network, its lower resolution with attention."""
    config = config.copy_and_resolve_references()
    model = config.model
    fields = {
        "data.image_size": SIZE,
        "model.blocks_per_resolution": 1,
        "model.features": 16 if model.name == "dit" else 8,
        "model.depth": 2,
        "model.compute_dtype": dtype,
        "training.batch_size": 8,
        "eval.batch_size": 8,
    }
    if model.channel_multipliers:
        fields["model.channel_multipliers"] = (1, 2)[: len(model.channel_multipliers)]
        fields["model.attention_resolutions"] = (SIZE // 2,) if model.attention_resolutions else ()
    if model.name != "dit":
        fields |= {"model.heads": 0, "model.head_width": 8, "model.num_groups": 0}
    for name, value in fields.items():
        section, _, field = name.partition(".")
        config[section][field] = value
    return config


def likelihood_program(experiment):
    """The log-likelihood of a batch by the probability-flow ODE."""
    params = experiment.trainer.abstract_parameters().ema_params
    count = experiment.evaluation.batch_size

    def log_prob(params, key, x):
        denoiser = experiment.trainer.with_image(experiment.model.denoiser(params), x)
        indices = jnp.arange(count)
        options = experiment.likelihood.options
        return likelihood._log_prob(
            key, denoiser, x, indices, options, ODEOptions(solver="adams", max_steps=64)
        )[0]

    key = jax.eval_shape(lambda: jax.random.key(0))
    x = jax.ShapeDtypeStruct((count, *experiment.data.shape), jnp.float32)
    return Program(jax.jit(log_prob), (params, key, x), count)


PROGRAMS = {"train": train_step, "sample": sampling_step, "likelihood": likelihood_program}


def lowered(program):
    """The text of a program for all PLATFORMS; raise for what cannot be lowered."""
    exported = jax.export.export(program.function, platforms=PLATFORMS)(*program.arguments)
    assert exported.platforms == PLATFORMS
    text = exported.mlir_module()
    assert "callback" not in text, "it calls Python on the host"
    return text


# Sections on which no program depends, beside the names of data, and the fields that are numbers.
_ELSEWHERE = {
    *("analytic_dpm", "classifier", "dequantizer", "diagnostics", "eval", "logging", "seed"),
    "variance_head",
}


def code_of(config):
    """What chooses the code of a reduced configuration: all but its floats and its data."""
    fields = {
        f"{section}.{name}": value
        for section, given in config.items()
        if section not in _ELSEWHERE
        for name, value in given.items()
        if not isinstance(value, float) and (section, name) not in (("data", "name"),)
    }
    steps = ("training.steps", "training.published_batch_size", "training.checkpoint_every")
    return repr(sorted((name, repr(v)) for name, v in fields.items() if name not in steps))


def failures(name):
    """The programs of a configuration that cannot be lowered, a line each."""
    failed = []
    for dtype in DTYPES:
        experiment = build(reduced(load_configuration(name), dtype))
        for kind, program in PROGRAMS.items():
            try:
                lowered(program(experiment))
            except Exception as error:  # of any kind; all are listed
                failed.append(f"{name} {dtype} {kind}: {type(error).__name__}: {error}"[:300])
    return failed


def main(names):
    """Lower all programs of the configurations with one of these names in theirs, each once."""
    distinct = {}
    for name, config in known_configurations():
        if not names or any(part in name for part in names):
            distinct.setdefault(code_of(reduced(config, DTYPES[0])), name)
    count = 0
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        for name, failed in zip(
            distinct.values(), pool.map(failures, distinct.values()), strict=True
        ):
            print("\n".join([name, *failed]), flush=True)
            count += len(failed)
    if count:
        sys.exit(f"{count} programs cannot be lowered")


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    main(sys.argv[1:])
