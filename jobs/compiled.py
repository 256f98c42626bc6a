"""What XLA says about compiled programs, and what makes a training step fit: `--compile`.

FLOP are those of the program before XLA changes it, so that they do not depend on the machine. The
memory is that of the program compiled for this machine's devices. Another compiler may need more or
less for what is temporary; what is kept between steps is the same everywhere.
"""

import dataclasses
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from experiment.build import build
from experiment.configurations import with_fields
from experiment.experiment import Experiment
from files.text import table
from jobs.accelerators import ACCELERATORS, UTILIZATION, Accelerator
from jobs.programs import Program, sampling_step, sampling_steps, train_step

# XLA:CPU keeps what config.model.remat should drop, and adds up all gradients at once. Compilers
# for accelerators do neither. LLVM takes time to optimize, and changes no buffer.
_AS_ACCELERATORS = {
    "xla_disable_hlo_passes": "cse_barrier_expander,cpu-all-reduce-combiner",
    "xla_backend_optimization_level": 0,
}


class Cost(NamedTuple):
    """Costs of a program on one device.

    Attributes:
        flops: FLOP.
        traffic: bytes that are read and written.
        kept: bytes of arguments and results, where they share memory counted once.
        temporary: bytes of everything between.
        batch_size: images that it works on, over all devices.
    """

    flops: float
    traffic: float
    kept: int
    temporary: int
    batch_size: int

    @property
    def peak(self) -> int:
        """All bytes at once."""
        return self.kept + self.temporary


def cost_of(program: Program, count: int) -> Cost:
    """Compile a program for `count` devices, all there are, and return its costs."""
    lowered = program.lower()
    compiled = lowered.compile(_AS_ACCELERATORS if jax.default_backend() == "cpu" else None)
    memory = compiled.memory_analysis()
    return Cost(
        flops=lowered.cost_analysis()["flops"] / count,
        traffic=compiled.cost_analysis()["bytes accessed"],
        kept=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        temporary=memory.temp_size_in_bytes,
        batch_size=program.batch_size,
    )


def train_cost(experiment: Experiment) -> Cost:
    """Compile the training step and return its costs."""
    trainer, count = experiment.trainer, experiment.parallel.devices
    cost = cost_of(train_step(experiment), count)
    parts = trainer.accumulate
    if parts == 1:
        return cost
    # XLA counts the body of a loop once.
    whole = train_step(experiment, dataclasses.replace(trainer, accumulate=1)).lower()
    flops = whole.cost_analysis()["flops"] / count
    return cost._replace(flops=flops, traffic=parts * cost.traffic - (parts - 1) * cost.kept)


class Attempt(NamedTuple):
    """Fields of a configuration, and what the training step costs with them."""

    fields: dict[str, Any]
    cost: Cost

    def __str__(self) -> str:
        flags = " ".join(f"--config.{name}={value}" for name, value in self.fields.items())
        return f"{flags} ({self.cost.peak / 1e9:.1f} GB)"


class Attempts:
    """Training steps of an experiment with other fields, each compiled once.

    Args:
        experiment: as it is configured.
        cost: of its training step.
    """

    def __init__(self, experiment: Experiment, cost: Cost) -> None:
        self._experiment = experiment
        self._costs: dict[tuple, Cost] = {(): cost}

    def fitting(self, limit: float) -> Attempt | None:
        """Return the first attempt of at most `limit` bytes per device; None if there is none."""
        return next((found for found in self._each(limit) if found.cost.peak <= limit), None)

    def smallest(self) -> Attempt:
        """Return the attempt so far with the least memory."""
        fields, cost = min(self._costs.items(), key=lambda item: item[1].peak)
        return Attempt(dict(fields), cost)

    def _each(self, limit: float) -> Iterator[Attempt]:
        """Yield attempts, those that cost the least time first."""
        experiment = self._experiment
        fields: dict[str, Any] = {}
        if experiment.parallel.devices > 1 and not experiment.trainer.sharding.divides:
            fields["parallel.shard"] = "params"
            yield self._try(fields)
        yield from self._accumulated(fields, limit)
        if getattr(experiment.model.network, "remat", None) is False:
            fields["model.remat"] = True
            yield self._try(fields)
            yield from self._accumulated(fields, limit)

    def _accumulated(self, fields: dict[str, Any], limit: float) -> Iterator[Attempt]:
        """Yield attempts in parts: about as many as fit, then twice as many, and the most."""
        experiment, now = self._experiment, self._experiment.trainer.accumulate
        cost = self._try(fields).cost
        rows = experiment.training.batch_size // experiment.parallel.devices
        parts = [number for number in range(now + 1, rows + 1) if rows % number == 0]
        if not parts:
            return
        room = max(limit - cost.kept, 1)
        enough = [number for number in parts if cost.temporary * now / number <= room] or parts[-1:]
        twice = [number for number in enough if number >= 2 * enough[0]] or enough[-1:]
        for number in dict.fromkeys((enough[0], twice[0], parts[-1])):
            yield self._try({**fields, "training.accumulate": number})

    def _try(self, fields: dict[str, Any]) -> Attempt:
        key = tuple(sorted(fields.items()))
        if key not in self._costs:
            shown = " ".join(f"--config.{name}={value}" for name, value in fields.items())
            print(f"trying {shown}", file=sys.stderr)
            self._costs[key] = train_cost(build(with_fields(self._experiment.config, fields)))
        return Attempt(dict(fields), self._costs[key])


def describe_compiled(experiment: Experiment) -> str:
    """Return what XLA says about a training step and a sampling step, and where they fit."""
    count = experiment.parallel.devices
    training = train_cost(experiment)
    sampling = cost_of(sampling_step(experiment), count)
    steps = sampling_steps(experiment)
    rows = [
        ("training step", _row(training, count)),
        ("one prediction" if steps is None else "sampling step", _row(sampling, count)),
    ]
    dtype = getattr(experiment.model.network, "compute_dtype", "float32")
    attempts = Attempts(experiment, training)
    head = ("accelerator", "memory", "training images/s", "sampled images/s", "per device")
    lines: list[tuple[str, ...]] = [head]
    for name, accelerator in ACCELERATORS.items():
        speed, fit = accelerator.speed, _fit(accelerator, training, attempts)
        trained = speed(flops=training.flops, traffic=training.traffic, dtype=dtype)
        drawn = speed(flops=sampling.flops, traffic=sampling.traffic, dtype=dtype)
        drawn_per_second = "not predicted"
        if steps is not None:
            per_second = sampling.batch_size / (drawn.seconds * steps)
            drawn_per_second = f"{_three_digits(per_second)} ({drawn.bound})"
        trained_per_second = _three_digits(training.batch_size / trained.seconds)
        lines.append(
            (
                name,
                f"{accelerator.memory:g} GB",
                f"{trained_per_second} ({trained.bound})",
                drawn_per_second,
                fit,
            )
        )
    notes = (
        f"on {count} device(s) in {dtype}, at {UTILIZATION:.0%} of the peak or at the memory's "
        "bandwidth, whichever is slower; communication is not counted"
    )
    return "\n\n".join([table(rows), table(lines), notes])


def _row(cost: Cost, count: int) -> str:
    flops = cost.flops * count / cost.batch_size
    return (
        f"{flops / 1e9:.4g} GFLOP per image; {cost.peak / 1e9:.2f} GB per device at batch "
        f"{cost.batch_size} ({cost.kept / 1e9:.2f} kept, {cost.temporary / 1e9:.2f} temporary)"
    )


def _fit(accelerator: Accelerator, cost: Cost, attempts: Attempts) -> str:
    """Return whether the training step fits, or with which fields it would."""
    if cost.peak <= accelerator.usable:
        return "fits"
    found = attempts.fitting(accelerator.usable)
    if found is not None:
        return f"does not fit; fits with {found}"
    smallest = attempts.smallest()
    return (
        f"does not fit; nothing tried is enough, the least is {smallest}: use more devices with "
        "--config.parallel.shard=params, or smaller batches"
    )


def _three_digits(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"
