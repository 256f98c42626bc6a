"""Samplers: every name builds one, which knows its cost and what it needs of a checkpoint."""

import pytest
from command_line import TINY, configuration

from errors import ConfigError
from experiment.build import build
from solvers import ADAPTIVE, SOLVERS


@pytest.mark.parametrize("name", [*SOLVERS, *ADAPTIVE])
def test_every_sampler_is_built_by_its_name(name):
    fields = {"sampling.name": name, "sampling.steps": 6}
    if name == "consistency":
        fields["loss.name"] = "consistency_training"
        fields["denoiser.parameterization"] = "consistency"
    if name == "mala":
        fields["denoiser.energy"] = True
    experiment = build(configuration(TINY | fields))
    sampler, resolved = experiment.sampler, experiment.config["sampling"]
    assert sampler.name == name
    assert (sampler.evaluations is None) == (name in ADAPTIVE)
    assert ("moments" in sampler.needs) == (name == "analytic")
    assert "classifier" not in sampler.needs
    assert resolved["clip"] == "none"
    if name in SOLVERS:
        denoised = resolved["final_step"] == "denoise"
        assert sampler.evaluations - denoised in (6, 12)
        assert resolved["steps"] == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("guidance", "classes", "needs", "factor"),
    [
        ("none", 0, set(), 1),
        ("none", 10, set(), 1),
        ("classifier", 0, {"classifier"}, 1),
        ("classifier", 10, {"classifier"}, 1),
        ("classifier_free", 10, set(), 2),
        ("autoguidance", 0, {"bad_model"}, 2),
        ("autoguidance", 10, {"bad_model"}, 2),
    ],
)
def test_guidance_says_what_it_needs_and_costs(guidance, classes, needs, factor):
    fields = {"guidance.name": guidance, "model.num_classes": classes}
    fields |= {"guidance.run": "other"} if guidance == "autoguidance" else {}
    sampler = build(configuration(TINY | fields)).sampler
    assert sampler.needs == needs
    assert sampler.evaluations == factor * build(configuration()).sampler.evaluations
    assert sampler.sample_classes == (classes if guidance in ("none", "autoguidance") else 10)


def test_guided_images_are_rescaled_where_that_is_asked_for():
    fields = TINY | {"guidance.name": "classifier_free", "model.num_classes": 10}
    for more, expected in (({}, 0.0), ({"guidance.rescale": 0.7}, 0.7)):
        sampler = build(configuration(fields | more)).sampler
        assert sampler.guidance_details.rescale == expected
    with pytest.raises(ConfigError, match=r"^config\.guidance\.rescale=2\.0 must lie in \[0, 1\]"):
        build(configuration(fields | {"guidance.rescale": 2.0}))
    given = {"guidance.rescale": 0.7}
    with pytest.raises(ConfigError, match=r"^config\.guidance\.rescale=0\.7 is not used"):
        build(configuration(TINY | given), overrides=given)


@pytest.mark.slow
def test_sdedit_walks_the_rest_of_the_grid():
    fields = {"sampling.steps": 10, "sampling.times": None, "task.input": "test"}
    whole = build(configuration(TINY | fields)).sampler
    rest = build(configuration(TINY | fields | {"task.name": "sdedit", "task.start": 0.5}))
    assert rest.sampler.solve.schedule.start == 0.5
    assert rest.sampler.evaluations < whole.evaluations
    assert rest.config["sampling"]["steps"] == 10, "of the grid"
