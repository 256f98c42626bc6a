"""Every field of a configuration has a reader, and every reader has a field."""

import ast
import dataclasses
import itertools
import json

import pytest
from command_line import ROOT, TINY, configuration

from bounds.continuous import ContinuousBoundOptions
from bounds.dequantization import DequantizationBound
from bounds.discrete import DiscreteBoundOptions
from configs import default
from data.couplings import COUPLINGS
from errors import ConfigError
from experiment.build import build
from experiment.class_guidance import GuidanceOptions
from experiment.configurations import load_configuration
from experiment.ends import EndOptions, measurements
from experiment.options import (
    AnalyticDPMOptions,
    ClassifierOptions,
    DataOptions,
    DenoiserOptions,
    DequantizerOptions,
    DiagnosticsOptions,
    EvaluationOptions,
    LoggingOptions,
    RowOptions,
    SamplingOptions,
    TrainingOptions,
    VarianceHeadOptions,
)
from experiment.perceptor import PerceptorOptions
from experiment.prompts import PromptOptions
from experiment.reader import Reader
from experiment.tasks import TASKS
from guidance.classifier import CrossEntropy
from guidance.classifier_free import ClassifierFreeOptions
from jobs.workdir import differences
from likelihood import LikelihoodOptions
from losses import LOSSES
from models import CLASSIFIERS, NETWORKS
from models.dequantizer import CouplingDequantizer
from numerics.clipping import Clipping
from numerics.ode import ODEOptions
from objectives.times import TIMES
from objectives.uncertainty import VarianceHeadLoss
from objectives.weights import WEIGHTS
from sde_lib import SDES
from solvers import ADAPTIVE, SOLVERS
from solvers.predictor_corrector import CORRECTORS, PREDICTORS
from time_grids import Schedule
from training.augmentation import Augmentation
from training.averages import HalfLifeAverage, MoreAverages, MovingAverage
from training.optimizers import OPTIMIZERS
from training.schedules import SCHEDULES
from training.sharding import Sharding

# section -> the classes that are built from it, and the fields by which they are chosen.
OWNERS = {
    "sde": (SDES.values(), {"name"}),
    "model": (NETWORKS.values(), {"name"}),
    "denoiser": ([DenoiserOptions], set()),
    "loss": (LOSSES.values(), {"name"}),
    "times": (TIMES.values(), {"name"}),
    "weight": (WEIGHTS.values(), {"name"}),
    "optim": ([*OPTIMIZERS.values(), *SCHEDULES.values()], {"name", "schedule"}),
    "ema": ([MovingAverage, HalfLifeAverage, MoreAverages], set()),
    "data": ([DataOptions, RowOptions], {"name"}),
    "coupling": ([EndOptions, *COUPLINGS.values(), *measurements().values()], {"name"}),
    "augmentation": ([Augmentation], set()),
    "training": ([TrainingOptions], set()),
    "diagnostics": ([DiagnosticsOptions], set()),
    "logging": ([LoggingOptions], set()),
    "sampling": (
        [
            SamplingOptions,
            Clipping,
            Schedule,
            *SOLVERS.values(),
            *PREDICTORS.values(),
            *CORRECTORS.values(),
            *itertools.chain(*(options.values() for _, options in ADAPTIVE.values())),
        ],
        {"name", "predictor", "corrector"},
    ),
    "guidance": ([GuidanceOptions, PromptOptions, ClassifierFreeOptions], {"name"}),
    "perceptor": ([PerceptorOptions], set()),
    "task": (itertools.chain(*TASKS.values()), {"name"}),
    "likelihood": ([LikelihoodOptions, ODEOptions], set()),
    "continuous_bound": ([ContinuousBoundOptions], set()),
    "discrete_bound": ([DiscreteBoundOptions, Clipping, Schedule], set()),
    "analytic_dpm": ([AnalyticDPMOptions], set()),
    "classifier": ([CrossEntropy, ClassifierOptions, *CLASSIFIERS.values()], {"name"}),
    "dequantizer": ([CouplingDequantizer, DequantizationBound, DequantizerOptions], set()),
    "variance_head": ([VarianceHeadLoss, VarianceHeadOptions], set()),
    "eval": ([EvaluationOptions], set()),
    "parallel": ([Sharding], set()),
}
OWNERS = {path: (tuple(classes), choices) for path, (classes, choices) in OWNERS.items()}

# Fields that no user chooses: Linen's own, and those that data, checkpoint or task decide.
NOT_CHOSEN = {"parent", "out_channels", "low", "high", "moments", "sde", "pixel_levels"}
NOT_CHOSEN |= {"total_steps", "interior", "row_shape"}
# The method of guidance, the machine and the data decide these.
UNSET = {("guidance", "scale"), ("data", "memory_gb"), ("perceptor", "class_names")}
ELSEWHERE = {
    "loss": {"times", "weight"},
    "weight": {"sigma_data"},
    "ema": {"batch_size"},
    "coupling": {"diffusion"},
    "sampling": {"start"},
    "discrete_bound": {"final_step", "start"},
}


@pytest.mark.parametrize("path", OWNERS)
def test_fields_of_a_section_are_those_of_the_classes_built_from_it(path):
    classes, choices = OWNERS[path]
    read = {f.name for cls in classes for f in dataclasses.fields(cls)} - NOT_CHOSEN
    read -= ELSEWHERE.get(path, set())
    read -= {"name"} - choices  # Linen modules have names too
    assert set(default.get_config()[path]) == read | choices


def test_every_section_has_owners():
    assert set(default.get_config()) == {*OWNERS, "seed"}


@pytest.mark.parametrize(
    "cls",
    [
        DenoiserOptions,
        DataOptions,
        TrainingOptions,
        SamplingOptions,
        GuidanceOptions,
        AnalyticDPMOptions,
        ClassifierOptions,
        EvaluationOptions,
    ],
)
def test_every_option_is_read_where_the_work_is_done(cls):
    """An option that is only validated changes nothing."""
    files = [ROOT / "run_lib.py", ROOT / "main.py"]
    for package in ("experiment", "jobs", "evaluation"):
        files += (ROOT / package).glob("*.py")
    read = {
        node.attr
        for file in files
        if file.name != "options.py" or cls is SamplingOptions  # it checks classes itself
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
    }
    unread = {field.name for field in dataclasses.fields(cls)} - read
    assert not unread


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vp_digits.py", "ve_cifar10.py", "vp_cifar10.py:ddpm"])
def test_resolved_configuration_is_complete_plain_json(name):
    """Fields of what is chosen have values, and all others are null."""
    config = load_configuration(f"configs/{name}")
    resolved = build(config).config
    again = json.loads(json.dumps(resolved, allow_nan=False))
    assert differences(again, resolved) == []
    assert set(resolved) == set(config)
    for path, section in resolved.items():
        if isinstance(section, dict):
            assert set(section) == set(config[path]), path
    sampling = resolved["sampling"]
    parts = [Clipping, Schedule, SamplingOptions, SOLVERS[sampling["name"]]]
    for table, role in ((PREDICTORS, "predictor"), (CORRECTORS, "corrector")):
        if sampling["name"] == "pc" and sampling[role] != "none":
            parts.append(table[sampling[role]])
    classifier = CLASSIFIERS[resolved["classifier"]["name"]]
    chosen = {
        "data": [DataOptions],
        "sde": [SDES[resolved["sde"]["name"]]],
        "model": [NETWORKS[resolved["model"]["name"]]],
        "loss": [LOSSES[resolved["loss"]["name"]]],
        "times": [TIMES[resolved["times"]["name"]]],
        "weight": [WEIGHTS[resolved["weight"]["name"]]],
        "optim": [
            OPTIMIZERS[resolved["optim"]["name"]],
            SCHEDULES[resolved["optim"]["schedule"]],
        ],
        "classifier": [classifier, CrossEntropy, ClassifierOptions],
        "ema": [MovingAverage, MoreAverages],
        "sampling": parts,
        "task": TASKS[resolved["task"]["name"]],
        "coupling": [EndOptions, COUPLINGS[resolved["coupling"]["name"]]],
        "guidance": [GuidanceOptions],
    }
    for path, (classes, choices) in OWNERS.items():
        own = {f.name for cls in chosen.get(path, classes) for f in dataclasses.fields(cls)}
        for field, value in resolved[path].items():
            if (path, field) in UNSET or field in {"rho", "quantile", "warmup_images"}:
                assert value is None, f"{path}.{field} belongs to a choice not made"
            elif field in own - NOT_CHOSEN:
                assert value is not None, f"{path}.{field} is chosen"
            elif field not in choices:
                assert value is None, f"{path}.{field} belongs to a choice not made"


def test_unused_field_is_an_error_on_the_command_line_and_null_in_a_file():
    config = configuration(TINY | {"sde.sigma_max": 3.0})
    assert build(config).config["sde"]["sigma_max"] is None
    message = (
        r"config\.sde\.sigma_max=3\.0 is not used with name='vp'; "
        r"the fields used are: beta_max, beta_min, name; "
        r"sigma_max is used with config\.sde\.name=ve"
    )
    with pytest.raises(ConfigError, match=message):
        build(config, overrides={"sde.sigma_max"})


def test_unused_field_of_a_predictor_is_found_with_the_sampler_that_has_it():
    fields = TINY | {"sampling.name": "unipc", "sampling.variance": "learned"}
    message = r"variance is used with config\.sampling\.name=pc predictor=ancestral"
    with pytest.raises(ConfigError, match=message):
        build(configuration(fields), overrides={"sampling.variance"})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Length:
    length: int = 3
    low: float = 0.0

    def __post_init__(self):
        if self.length < 1:
            raise ValueError(f"length={self.length} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Color:
    color: str = "red"


def test_classes_share_a_section_and_defaults_are_recorded():
    config = {"box": {"name": "b", "length": None, "color": "blue", "depth": 2}, "seed": 1}
    reader = Reader(config)
    length, color = reader.build_all(
        "box", (Length, Color), ignore={"name"}, fixed={"low": 1.5}
    ).values()
    assert (length, color) == (Length(length=3, low=1.5), Color(color="blue"))
    assert reader.resolved["box"] == {"name": "b", "length": 3, "color": "blue", "depth": None}
    assert config["box"]["depth"] == 2, "the configuration stays as it is"


@pytest.mark.parametrize(
    ("section", "overrides", "message"),
    [
        ({"length": 0}, set(), r"^config\.box\.length=0 must be at least 1$"),
        ({"length": "x"}, set(), r"^config\.box\."),  # a TypeError of the class
        (
            {"length": 1, "depth": 2},
            {"box.depth"},
            r"^config\.box\.depth=2 is not used; the fields used are: length$",
        ),
    ],
)
def test_errors_name_the_field_in_full(section, overrides, message):
    with pytest.raises(ConfigError, match=message):
        Reader({"box": section}, overrides).build("box", Length)


def test_unknown_name_lists_the_rows_of_the_table():
    reader = Reader({"box": {"name": "bag"}})
    with pytest.raises(
        ConfigError, match=r"config\.box\.name='bag' is unknown; choose one of: a, b"
    ):
        reader.lookup("box", {"b": Length, "a": Color})
