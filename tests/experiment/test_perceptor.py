"""The perceptor of a run: its captions, and what it refuses before anything is trained."""

import numpy as np
import pytest
from command_line import TINY, configuration, write_images

from errors import ConfigError
from experiment.build import build


def built(fields):
    return build(configuration(TINY | fields), overrides=frozenset(fields))


@pytest.mark.slow
def test_captions_are_the_words_of_each_class_in_each_template():
    model = built({"perceptor.captions": ("{}", "a {}")}).parts.perceptor
    assert model.captions[7] == ["seven", "a seven", "7", "a 7"]
    assert model.tokens.shape == (10, 4, 16)
    # Each word is one token, between start and end.
    assert (model.tokens[7, 0] == model.network.end_token).sum() == 14
    names = tuple(f"digit {i}" if i else "nothing|digit 0" for i in range(10))
    named = built({"perceptor.class_names": names, "perceptor.captions": ("{}",)}).parts.perceptor
    assert named.captions[:2] == [["nothing", "digit 0"], ["digit 1"]]
    np.testing.assert_array_equal(named.tokens[1, 0], named.tokens[1, 1])  # one name fills up


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"perceptor.captions": ("a",)}, r"config\.perceptor\.captions=.*must each have {}"),
        ({"perceptor.class_names": ()}, r"config\.perceptor\.class_names=\(\) must be the words"),
        ({"perceptor.steps": 0}, r"config\.perceptor\.steps=0 must be at least 1"),
        ({"perceptor.noise": -1.0}, r"config\.perceptor\.noise=-1\.0 must"),
    ],
)
def test_wrong_options_are_refused(fields, problem):
    with pytest.raises(ConfigError, match=problem):
        built(fields)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"perceptor.class_names": ("cat", "dog")}, "are 2, and the classes of .* are 0..9; name"),
        ({"perceptor.class_names": ("|",) * 10}, "class_names has an empty name"),
        ({"perceptor.patch_size": 3}, r"config\.perceptor: patch_size=3 must divide the image si"),
        ({"perceptor.heads": 3}, r"heads=3 must divide features=64"),
        ({"perceptor.context_length": 3}, r"has 2 tokens, and the perceptor takes 1"),
    ],
)
@pytest.mark.slow
def test_what_does_not_suit_the_data_is_refused_before_training(fields, problem):
    experiment = built(fields)
    with pytest.raises(ConfigError, match=problem):
        experiment.parts.perceptor.check(experiment.data)


def test_images_without_labels_are_refused(tmp_path):
    experiment = built({"data.name": str(write_images(tmp_path / "a.npz", 10, 4))})
    with pytest.raises(ConfigError, match="has no labels, and words belong to classes; give"):
        experiment.parts.perceptor.check(experiment.data)
