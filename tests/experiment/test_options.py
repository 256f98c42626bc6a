"""Options check themselves."""

import pytest

from experiment.options import (
    AnalyticDPMOptions,
    ClassifierOptions,
    DataOptions,
    DenoiserOptions,
    EvaluationOptions,
    SamplingOptions,
    TrainingOptions,
)


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (DataOptions, {"image_size": 0}, "image_size=0 must be at least 1"),
        (DataOptions, {"channels": -1}, "channels=-1 must be at least 1"),
        (DataOptions, {"resize": "x"}, "resize='x' is unknown; choose one of: crop, none, pad"),
        (DenoiserOptions, {"parameterization": "x"}, "parameterization='x' is unknown"),
        (DenoiserOptions, {"conditioning": "x"}, "conditioning='x' is unknown"),
        (DenoiserOptions, {"num_timesteps": 1}, "num_timesteps=1 must be at least 2"),
        (TrainingOptions, {"steps": 0}, r"steps=0 must lie in \[1, 2147483647\]"),
        (TrainingOptions, {"keep_checkpoints": -1}, "keep_checkpoints=-1 must be at least 0"),
        (TrainingOptions, {"label_dropout": 2.0}, r"label_dropout=2\.0 must lie in \[0, 1\)"),
        (SamplingOptions, {"seed": -1}, r"seed=-1 must lie in \[0, 4294967295\]"),
        (SamplingOptions, {"labels": (True,)}, "must be integers"),
        (EvaluationOptions, {"seed": -1}, r"seed=-1 must lie in \[0, 4294967295\]"),
        (
            EvaluationOptions,
            {"error_budget_images": -1},
            "error_budget_images=-1 must be at least 0",
        ),
        (EvaluationOptions, {"samples": 1}, "samples=1 must be at least 2"),
        (AnalyticDPMOptions, {"num_images": 2}, "num_images=2 must be at least 3"),
        (AnalyticDPMOptions, {"num_times": 2}, "num_times=2 must be at least 3"),
        (ClassifierOptions, {"steps": 0}, "steps=0 must be at least 1"),
        (ClassifierOptions, {"conditioning": "x"}, "conditioning='x' is unknown"),
    ],
)
def test_value_out_of_range_is_refused(cls, fields, message):
    with pytest.raises(
        ValueError, match=f"^{message}" if "must be int" not in message else message
    ):
        cls(**fields)


@pytest.mark.parametrize(
    "cls",
    [
        AnalyticDPMOptions,
        ClassifierOptions,
        DataOptions,
        DenoiserOptions,
        EvaluationOptions,
        SamplingOptions,
        TrainingOptions,
    ],
)
def test_defaults_are_valid(cls):
    assert cls() == cls()
