"""The configuration and its one reader: every field has a reader, every reader has a field."""

import ast
import dataclasses
import itertools
import json
import runpy

import jax
import numpy as np
import pytest
from command_line import ROOT, TINY, configuration

from bounds.continuous import ContinuousBoundOptions
from bounds.discrete import DiscreteBoundOptions
from configs import default, vp_cifar10
from data.scaling import ImageScaler
from denoising import Clipping
from errors import ConfigError
from evaluation import evaluate, features
from experiment import build
from experiment.reader import Reader
from experiment.sampler import build_sampling
from experiment.tasks import TASKS, GuidanceOptions
from guidance.classifier import CrossEntropy
from jobs.plan import _memory
from jobs.workdir import differences
from likelihood import LikelihoodOptions
from losses import LOSSES
from models import CLASSIFIERS, NETWORKS
from numerics.ode import ODEOptions
from sde_lib import SDES, VPSDE
from solvers import ADAPTIVE, SOLVERS
from solvers.predictor_corrector import CORRECTORS, PREDICTORS
from time_grids import Schedule
from training.step import MovingAverage, Optimizer

# All of them are planned by CI; these differ in process, network, sampler.
CONFIGS = ("vp_digits", "ve_cifar10", "vp_cifar10:ddpm")

# subtree -> what is made from it, and the names by which things are chosen.
OWNERS = {
    "sde": (SDES.values(), {"name"}),
    "model": (NETWORKS.values(), {"name"}),
    "loss": (LOSSES.values(), {"name"}),
    "optim": ([Optimizer], set()),
    "ema": ([MovingAverage], set()),
    "likelihood": ([LikelihoodOptions, ODEOptions], set()),
    "continuous_bound": ([ContinuousBoundOptions], set()),
    "discrete_bound": ([DiscreteBoundOptions, Clipping, Schedule], set()),
    "classifier": (
        [CrossEntropy, *CLASSIFIERS.values()],
        {"name", "conditioning", "num_timesteps", "lr", "warmup", "batch_size", "steps"},
    ),
    "sampling": (
        [
            Clipping,
            Schedule,
            *SOLVERS.values(),
            *PREDICTORS.values(),
            *CORRECTORS.values(),
            *itertools.chain(*(options.values() for _, options in ADAPTIVE.values())),
            GuidanceOptions,
            *itertools.chain(*TASKS.values()),
        ],
        {"name", "task", "seed", "label", "predictor", "corrector"},
    ),
}
# Fields of a thing that are no choice of a person's: Linen's own, and what the data decide.
NOT_CHOSEN = {"parent", "out_channels", "low", "high", "moments"}


@pytest.mark.parametrize("path", OWNERS)
def test_fields_are_those_of_what_is_made_from_them(path):
    classes, choices = OWNERS[path]
    read = {f.name for cls in classes for f in dataclasses.fields(cls)} - NOT_CHOSEN
    read -= {"name"} - choices  # Linen modules are named too
    if path == "discrete_bound":
        read -= {"final_step", "start"}  # a sampler's
    assert set(default.get_config()[path]) == read | choices


def test_other_subtrees_have_a_reader_for_each_field():
    """Read by name: a field that no module spells is a field that does nothing."""
    sources = "\n".join(
        (ROOT / name).read_text()
        for name in (
            "builders.py",
            "experiment.py",
            "extractors.py",
            "calibration.py",
            "likelihood_report.py",
            "run_lib.py",
            "sample_report.py",
            "training_run.py",
        )
    )
    config = default.get_config()
    # `training.<name>_every` are read in one loop over <name>.
    patterns = {"log_every", "checkpoint_every", "sample_every"}
    spelt = {
        node.value if isinstance(node, ast.Constant) else node.attr
        for node in ast.walk(ast.parse(sources))
        if isinstance(node, ast.Constant | ast.Attribute)
    }
    assert set(config) == {*OWNERS, "seed", "denoiser", "data", "training", "moments", "eval"}
    assert set(config.denoiser) == {"parameterization", "conditioning", "num_timesteps", "energy"}
    for path in ("data", "training", "moments", "eval"):
        assert set(config[path]) - patterns <= spelt, path


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_resolved_configuration_is_complete_plain_json(name):
    file, _, variant = name.partition(":")
    module = runpy.run_path(str(ROOT / "configs" / f"{file}.py"))
    config = module["get_config"](*filter(None, [variant]))
    resolved = build.build(config).config
    again = json.loads(json.dumps(resolved, allow_nan=False))
    assert differences(again, resolved) == []
    assert set(resolved) == set(config)
    for path, node in resolved.items():
        if isinstance(node, dict):
            assert set(node) == set(config[path]), path
    chosen = {
        "sde": dataclasses.fields(SDES[resolved["sde"]["name"]]),
        "model": dataclasses.fields(NETWORKS[resolved["model"]["name"]]),
        "loss": dataclasses.fields(LOSSES[resolved["loss"]["name"]]),
        "classifier": [
            *dataclasses.fields(CLASSIFIERS[resolved["classifier"]["name"]]),
            *dataclasses.fields(CrossEntropy),
        ],
        "sampling": [
            *dataclasses.fields(Clipping),
            *dataclasses.fields(Schedule),
            *dataclasses.fields(GuidanceOptions),
            *dataclasses.fields(SOLVERS[resolved["sampling"]["name"]]),
        ],
    }
    if resolved["sampling"]["name"] == "pc":
        predictor = PREDICTORS[resolved["sampling"]["predictor"]]
        chosen["sampling"] += dataclasses.fields(predictor)
    for path, node in resolved.items():
        if not isinstance(node, dict):
            continue
        own = {f.name for f in chosen[path]} if path in chosen else set(node)
        if path == "sampling" and node["corrector"] not in ("none", None):
            corrector = CORRECTORS[node["corrector"]]
            own |= {f.name for f in dataclasses.fields(corrector)}
        for field, value in node.items():
            if field in {"rho", "quantile", "guidance_scale"}:
                assert value is None, f"{path}.{field} is of a grid or clipping not chosen"
            elif field in own - NOT_CHOSEN:
                assert value is not None, f"{path}.{field} is chosen"
            elif field not in OWNERS.get(path, ((), set()))[1]:
                assert value is None, f"{path}.{field} is of something not chosen"


@pytest.mark.slow
def test_resolved_configuration_builds_the_same():
    """What a checkpoint carries is enough: given back as a configuration it resolves to itself."""
    resolved = build.build(configuration()).config
    config = default.get_config()
    for path, node in resolved.items():
        if isinstance(node, dict):
            for field, value in node.items():
                config[path][field] = value
        else:
            config[path] = node
    assert build.build(config).config == resolved


@pytest.mark.parametrize("name", [*SOLVERS, *ADAPTIVE])
def test_every_sampler_is_built_by_its_name(name):
    config = configuration(TINY | {"sampling.name": name, "sampling.steps": 6})
    reader, scaler = Reader(config, frozenset()), ImageScaler(low=-1.0, high=1.0)
    made = build_sampling(reader, VPSDE(), scaler, (8, 8, 1))
    assert (made.evaluations is None) == (name in ADAPTIVE)
    assert (made.with_moments is not None) == (name == "analytic")
    assert reader.resolved["sampling"]["clip"] == "none"
    if name in SOLVERS:
        finished = reader.resolved["sampling"]["final_step"] == "denoise"
        assert made.evaluations - finished in (6, 12)
        assert reader.resolved["sampling"]["steps"] == 6


@pytest.mark.parametrize(
    ("config", "given", "evaluations"),
    [
        ("vp_digits", {"times": (1.0, 0.5, 0.1, 0.01)}, 4),
        ("vp_cifar10:ddpm", {"grid": "ddim50"}, 50),
        ("vp_cifar10:ddpm", {"times": (1.0, 0.5, 0.0)}, 3),
        ("edm_imagenet_64", {"s_churn": 0.0}, 511),
        ("edm_imagenet_64", {"grid": "uniform"}, 511),
    ],
)
def test_what_a_person_gives_takes_the_place_of_what_the_file_says(config, given, evaluations):
    file, _, variant = config.partition(":")
    module = runpy.run_path(str(ROOT / "configs" / f"{file}.py"))
    made = module["get_config"](*filter(None, [variant]))
    made.sampling.update(given)
    before = str(made)
    reader = Reader(made, frozenset(f"sampling.{name}" for name in given))
    sde = reader.choose("sde", SDES)
    counted = build_sampling(reader, sde, ImageScaler(), (8, 8, 1)).evaluations
    assert counted == evaluations
    assert str(made) == before


def test_explicit_field_of_another_choice_is_an_error_and_of_a_file_is_null():
    config = configuration(TINY | {"sde.sigma_max": 3.0})
    assert build.build(config).config["sde"]["sigma_max"] is None
    with pytest.raises(ConfigError, match=r"config\.sde\.sigma_max=3\.0 is not a field of VPSDE"):
        build.build(config, explicit=frozenset({"sde.sigma_max"}))


@pytest.mark.slow
def test_building_allocates_nothing_and_reads_no_data():
    before = {id(array) for array in jax.live_arrays()}
    config = vp_cifar10.get_config()
    config.data.dir = "/nowhere"
    experiment = build.build(config)
    kept = [array for array in jax.live_arrays() if id(array) not in before]
    assert sum(array.size for array in kept) < 1000
    with pytest.raises(ConfigError, match="cifar10"):
        _ = experiment.data


@pytest.mark.slow
def test_memory_estimate_is_near_what_the_compiler_plans():
    """At most; within a factor of two of XLA's own plan for the same step on one device's share."""
    fields = TINY | {"model.features": 32, "model.channel_multipliers": (1, 2)}
    experiment = build.build(configuration(fields | {"training.batch_size": 64}))
    trainer = experiment.trainer
    key = jax.eval_shape(lambda: jax.random.key(0))
    batch = jax.ShapeDtypeStruct((64, 8, 8, 1), np.float32, sharding=experiment.parallel.split)
    plan = trainer.compiled_step().lower(key, trainer.abstract_state(), batch).compile()
    memory = plan.memory_analysis()
    planned = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    told = float(_memory(experiment).split()[1]) * 1e9
    assert planned / 2 < told + 0.005e9
    assert told - 0.005e9 < planned * 2


def test_names_that_are_checked_here_are_those_of_what_does_the_work():
    assert set(build.METRICS) == evaluate.OF_IMAGES.keys() | evaluate.OF_SAMPLES.keys()
    assert set(build.FEATURES) == features.EXTRACTORS.keys()


def test_limits_of_the_classifier_bind_only_who_uses_it():
    """Nor may its batch, which need not divide over the devices of those who train without one."""
    experiment = build.build(configuration(TINY | {"classifier.batch_size": 30}))
    with pytest.raises(ConfigError, match=r"config\.classifier\.batch_size=30 does not divide"):
        experiment.classifier()
