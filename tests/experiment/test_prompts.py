"""The options of guidance by texts: what they accept, and one line for what they do not."""

import pytest
from command_line import TINY, configuration

from errors import ConfigError
from experiment.build import build

FIELDS = TINY | {"sampling.name": "ddim", "guidance.name": "text"}


def built(fields):
    return build(configuration(FIELDS | fields), overrides=frozenset(fields))


@pytest.mark.slow
def test_prompts_reach_the_sampler():
    prompts = {"guidance.prompt": "a cat:2 | dog", "guidance.image_prompt": "a.png:-0.5"}
    experiment = built(prompts | {"guidance.cutouts": 3, "guidance.interval": (0.1, 0.9)})
    details, sampler = experiment.sampler.guidance_details, experiment.sampler
    assert details.texts == (("a cat", 2.0), ("dog", 1.0))
    assert details.images == (("a.png", -0.5),)
    assert details.parts.count == 3
    assert sampler.needs == {"perceptor"}
    # Gradients of networks are far too large where there is hardly any signal.
    assert experiment.config["sampling"]["clip"] == "range"
    loose = built(prompts | {"guidance.range_scale": 10.0})
    assert loose.config["sampling"]["clip"] == "none"


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({}, r"config\.guidance\.prompt='' is empty, and name='text' needs a text; give one such"),
        ({"guidance.prompt": "  "}, "needs a text"),
        ({"guidance.prompt": "seven:x"}, r"config\.guidance\.prompt='seven:x' has the weight 'x'"),
        ({"guidance.prompt": "seven:0"}, r"weights of 0 alone; give one prompt another weight"),
        ({"guidance.image_prompt": "|"}, r"config\.guidance\.image_prompt='\|' has an empty"),
        ({"guidance.cutouts": -1}, r"cutouts=-1 must lie in \[0, 1024\]"),
        ({"guidance.cutout_min": 2.0}, r"cutout_min=2.0 must lie in \(0, 1\]"),
        ({"guidance.variation_scale": -2.0}, "variation_scale=-2.0 must be at least 0"),
        (
            {"guidance.range_scale": 1.0, "sampling.clip": "range"},
            r"config\.guidance\.range_scale=1\.0 has no effect with config\.sampling\.clip='range'",
        ),
        (
            {"guidance.name": "none"},
            r"config\.guidance\.prompt='seven' is not used with name='none'",
        ),
        (
            {"data.name": "points:moons", "model.name": "mlp", "data.kind": "points"},
            r"config\.guidance\.name='text' is for images, and the data are points; choose another",
        ),
    ],
)
def test_wrong_options_are_one_line(fields, problem):
    prompt = {} if "needs a text" in problem or "image" in problem else {"guidance.prompt": "seven"}
    with pytest.raises(ConfigError, match=problem) as caught:
        built(prompt | fields)
    assert "\n" not in str(caught.value)
