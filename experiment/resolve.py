"""Resolve a configuration: settle the fields that depend on other fields.

`resolve` is a function from configuration to configuration, and reads nothing but the kind of a
file of data. Objects are built afterwards.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

from ml_collections import ConfigDict

from data.rows import kind_of
from errors import ConfigError
from experiment.configurations import default_configuration
from experiment.kinds import KINDS
from experiment.reader import config_errors, to_builtin
from experiment.tasks import TASKS, InverseProblem
from objectives.distillation import ProgressiveDistillation
from objectives.maximum_likelihood import MaximumLikelihood
from sde_lib import SDES
from time_grids import TIME_GRIDS


def resolve(
    config: ConfigDict | Mapping[str, Any], overrides: Collection[str] = ()
) -> dict[str, Any]:
    """Return the configuration as nested dicts of built-in types, with dependent fields settled.

    Args:
        config: a configuration; it stays as it is.
        overrides: dotted names of the fields that the command line sets.

    Raises:
        ConfigError: if a section is missing or is none, or a file of data cannot be read.
    """
    if isinstance(config, ConfigDict):
        config = config.copy_and_resolve_references()
    resolved = _completed(to_builtin(config))
    _settle_kind(resolved)
    _drop_superseded(resolved["sampling"], overrides)
    for given, other in (("warmup", "warmup_images"), ("warmup_images", "warmup")):
        if f"optim.{given}" in overrides and f"optim.{other}" not in overrides:
            resolved["optim"][other] = None
    if resolved["sampling"]["discretization"] == "published":
        _settle_published(resolved["sampling"], resolved["sde"])
    _settle_few_steps(resolved, overrides)
    task = resolved["task"]
    inverse_problem = InverseProblem in TASKS.get(task["name"], ())
    guidance = resolved["guidance"]
    by_text = guidance["name"] == "text" and not guidance["range_scale"]
    if (inverse_problem and task["method"] != "projection") or by_text:
        # A network's gradient is huge where there is hardly any signal.
        resolved["sampling"]["clip"] = resolved["sampling"]["clip"] or "range"
    bound = resolved["discrete_bound"]
    if bound["grid"] is None:
        bound["grid"] = "timesteps" if is_chain(resolved["sde"]["name"]) else "log_snr"
    return resolved


def _completed(config: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration with the fields that are younger than it, at their defaults."""
    completed = {}
    for name, default in default_configuration().items():
        if type(config.get(name, default)) is not type(default) or name not in config:
            raise ConfigError(
                f"config.{name} is {'missing' if name not in config else repr(config[name])[:40]}; "
                "start from default.get_config() of configs/default.py, which has every section"
            )
        completed[name] = default | config[name] if isinstance(default, dict) else config[name]
    return completed


def _settle_kind(config: dict[str, Any]) -> None:
    """Set the kind of the data, and what is measured of this kind, where they are open."""
    data = config["data"]
    if data["kind"] is None:
        with config_errors("data"):
            data["kind"] = kind_of(data["name"])
    if data["kind"] in KINDS:
        for section, fields in KINDS[data["kind"]].measurements.fields.items():
            for name, value in fields.items():
                if config[section][name] is None:
                    config[section][name] = value


def is_chain(name: str) -> bool:
    """Return whether a process is discrete, with a number of timesteps of its own."""
    return name in SDES and "num_timesteps" in {f.name for f in dataclasses.fields(SDES[name])}


def _settle_published(sampling: dict[str, Any], sde: dict[str, Any]) -> None:
    """Set the fields that the command line and the file leave open as the published code does."""
    defaults = {"final_step": "mean", "norm_reduction": "batch"}
    if is_chain(sde["name"]) and not sampling["times"]:
        default = SDES[sde["name"]].__dataclass_fields__["num_timesteps"].default
        defaults["steps"] = (sde["num_timesteps"] or default) - 1
    for field, value in defaults.items():
        if sampling[field] is None:
            sampling[field] = value


def _settle_few_steps(config: dict[str, Any], overrides: Collection[str]) -> None:
    """Sample as the objective trains, where the command line leaves it open."""
    sampling, loss = config["sampling"], config["loss"]
    settled: dict[str, Any] = {}
    if loss["name"] == "progressive_distillation":
        settled = {"name": "ddim", "final_step": "none", "times": None}
        for field, given in (("grid", "grid"), ("steps", "student_steps"), ("t_min", "t_min")):
            default = getattr(ProgressiveDistillation, given)
            settled[field] = default if loss[given] is None else loss[given]
    elif loss["name"] == "maximum_likelihood":
        settled = {"t_min": MaximumLikelihood.t_min if loss["t_min"] is None else loss["t_min"]}
        if "likelihood.t_min" not in overrides:
            config["likelihood"]["t_min"] = settled["t_min"]
    elif sampling["name"] == "consistency" and sampling["final_step"] in (None, "denoise"):
        settled = {"final_step": "mean"}  # the last prediction is the sample
    for field, value in settled.items():
        if f"sampling.{field}" not in overrides:
            sampling[field] = value


# A field that the command line sets, and the file's fields that it makes meaningless.
_SUPERSEDES = {
    "steps": ("times",),
    "times": ("grid", "steps", "rho"),
    "grid": ("times", "steps", "rho"),
    "rtol": ("steps",),
    "s_churn": ("churn_min", "churn_max", "churn_noise"),
    "discretization": ("final_step", "grid", "steps"),
}


def _drop_superseded(sampling: dict[str, Any], overrides: Collection[str]) -> None:
    """Unset the file's fields that contradict those of the command line."""
    for given, others in _SUPERSEDES.items():
        if f"sampling.{given}" not in overrides:
            continue
        if given == "grid" and sampling["grid"] in TIME_GRIDS:
            others = ("times", "rho")
        if given == "discretization" and sampling["grid"] != "timesteps":
            others = ("final_step",)
        if given == "discretization" and sampling["discretization"] != "published":
            others = ()
        if given == "s_churn" and sampling["s_churn"]:
            others = ()
        if given == "rtol" and sampling["name"] != "sde":
            others = ()
        for name in others:
            if f"sampling.{name}" not in overrides:
                sampling[name] = None
