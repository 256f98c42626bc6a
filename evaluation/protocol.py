"""The protocol of an evaluation or of samples: everything that their numbers depend on."""

import hashlib
import json
from collections.abc import Collection
from typing import Any

from errors import ConfigError, FileError
from experiment.experiment import Experiment
from experiment.sampler import Checkpoint
from files.copies import local_input
from files.kinds import require_file
from files.nested import flatten
from files.writing import sha256_of
from metrics.features import Extractor
from numerics.arrays import digest

# The parts that describe the model and the data, on which every number depends.
MODEL_FIELDS = ("checkpoint", "coupling.", "data.", "denoiser.", "images.", "model.", "sde.")
# The parts that describe how samples are drawn.
SAMPLER_FIELDS = ("sampling.", "guidance.", "needs.")

_SECTIONS = (
    "data",
    "coupling",
    "sde",
    "denoiser",
    "ema",
    "loss",
    "times",
    "weight",
    "sampling",
    "guidance",
    "eval",
)
_BOUNDS = ("likelihood", "continuous_bound", "discrete_bound")
# Fields that change no number: files of which digests are kept, what else is kept, when to give up.
_IRRELEVANT = (
    "data.dir",
    "data.memory_gb",
    "data.workers",
    "ema.lengths",
    "ema.more_rates",
    "ema.snapshot_every",
    "eval.checkpoints",
    "eval.inception_weights",
    "eval.reference",
    "guidance.image_prompt",
    "guidance.perceptor",
    "guidance.run",
    "likelihood.max_steps",
    "sampling.max_steps",
)


class Protocol:
    """Fields by dotted name, and what two protocols have in common.

    Attributes:
        tree: the fields as nested dicts, as they are written to JSON.
        fields: the fields by dotted name.
    """

    def __init__(self, tree: dict[str, Any]) -> None:
        self.tree = tree
        self.fields = flatten(tree, ".")

    def key(self, name: str, *prefixes: str) -> str:
        """Return `name` with a digest of the fields that begin with a prefix, or of all."""
        chosen = {field: v for field, v in self.fields.items() if field.startswith(prefixes or "")}
        found = hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()
        return f"{name}-{found[:12]}"

    def difference(self, other: "Protocol", *prefixes: str) -> list[str]:
        """Return the names of the fields that differ, of those that begin with a prefix."""
        names = sorted(self.fields.keys() | other.fields.keys())
        return [
            name
            for name in names
            if name.startswith(prefixes or "") and self.fields.get(name) != other.fields.get(name)
        ]


def protocol_of(
    experiment: Experiment, checkpoint: Checkpoint, extractors: Collection[Extractor]
) -> Protocol:
    """Return the protocol of an evaluation.

    Raises:
        ConfigError: if `config.eval.reference` cannot be read.
    """
    tree = _sections(experiment, *_SECTIONS, *_BOUNDS)
    images, reference = experiment.data.splits, experiment.evaluation.reference
    tree |= _checkpoint_fields(experiment, checkpoint)
    tree |= {
        "model": {"num_classes": experiment.model.num_classes},
        "dequantizer": {"digest": _digest_of_dequantizer(experiment, checkpoint)},
        "images": {
            name: {"count": len(split), "sha256": images.fingerprints[name][:16]}
            for name, split in (("train", images.train), ("test", images.test))
        },
        "extractors": {extractor.name: extractor.digest for extractor in extractors},
        "reference": _digest_of(reference) if reference else None,
    }
    return Protocol(json.loads(json.dumps(tree)))  # as it reads back from JSON


def samples_protocol(
    experiment: Experiment, checkpoint: Checkpoint, count: int, inputs: Any = None
) -> Protocol:
    """Return the protocol of `count` samples of `--mode=sample`; `inputs` are those of a task."""
    sections = "data", "coupling", "sde", "denoiser", "ema", "sampling", "guidance", "task"
    tree = _sections(experiment, *sections)
    tree |= _checkpoint_fields(experiment, checkpoint)
    tree |= {
        "step": checkpoint.step,
        "model": {"num_classes": experiment.model.num_classes},
        "inputs": None if inputs is None else digest(inputs),
        "num_samples": count,
    }
    return Protocol(json.loads(json.dumps(tree)))


def _sections(experiment: Experiment, *names: str) -> dict[str, Any]:
    """Return sections of the configuration, without the fields that change no number."""
    return {
        name: {
            field: value
            for field, value in experiment.config[name].items()
            if f"{name}.{field}" not in _IRRELEVANT
        }
        for name in names
    }


def _checkpoint_fields(experiment: Experiment, checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the fields that identify a checkpoint, and what a sampler needs beside it."""
    denoiser = checkpoint.denoiser
    average = {"average": checkpoint.average} if checkpoint.average else {}
    return {
        # The process has arrays if it is learned.
        "checkpoint": experiment.parallel.digest((denoiser.network, denoiser.sde)),
        "needs": checkpoint.digests,
        **average,
    }


def _digest_of_dequantizer(experiment: Experiment, checkpoint: Checkpoint) -> str | None:
    dequantizer: Any = checkpoint.dequantizer
    return None if dequantizer is None else experiment.parallel.digest(dequantizer.network.args)


def _digest_of(reference: str) -> str:
    path = local_input(reference)
    try:
        require_file(path, f"config.eval.reference={reference!r}")
        return sha256_of(path)[:16]
    except FileError as error:
        raise ConfigError(f"{error}, or write one with --mode=stats") from error
    except OSError as error:
        raise ConfigError(
            f"config.eval.reference={reference!r} cannot be read ({error.strerror}); write one "
            "with --mode=stats"
        ) from error
