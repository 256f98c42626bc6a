"""Samples by prompts, with a perceptor in a folder, and folders and files that are none."""

import dataclasses

import jax
import numpy as np
import pytest
from command_line import TINY, configuration
from jax.tree_util import Partial
from PIL import Image

from errors import ConfigError
from experiment.build import build
from experiment.sampler import Checkpoint
from jobs.perceptor import load_perceptor
from jobs.workdir import Workdir
from published.clip import abstract_params, write_clip

FIELDS = TINY | {
    "sampling.name": "ddim",
    "sampling.variant": None,
    "guidance.name": "text",
    "guidance.prompt": "seven:1 | the digit 3:-0.5",
    "perceptor.features": 8,
    "perceptor.depth": 1,
    "perceptor.embedding": 8,
}


def built(**guidance):
    fields = {f"guidance.{name}": value for name, value in guidance.items()}
    return build(configuration(FIELDS | fields), overrides=frozenset(fields))


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A folder with a perceptor that was never trained."""
    workdir, model = Workdir(tmp_path_factory.mktemp("run")), built().parts.perceptor
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.float32(rng.normal(size=leaf.shape)).reshape(leaf.shape),
        abstract_params(model.network),
    )
    write_clip(workdir.perceptor.clip, model.network, params, model.tables, model.standardization)
    return workdir


def shrink(x, cond):
    """A network that is quickly compiled."""
    return 0.5 * x


@pytest.mark.slow
def test_sample_k_depends_on_seed_and_k_alone(workdir):
    """Also with random cutouts, whatever lies beside it."""
    experiment = built(cutouts=2, scale=1e4, through_network=False)
    prompted = load_perceptor(experiment, workdir)

    def draw(indices, prompted=prompted):
        denoiser = dataclasses.replace(experiment.model.denoiser({}), network=Partial(shrink))
        checkpoint = Checkpoint(step=0, denoiser=denoiser, perceptor=prompted)
        return experiment.sampler.draw(checkpoint, np.array(indices)).samples.astype(int)

    whole, part = draw([0, 1, 2, 3]), draw([3, 7, 1, 5])
    np.testing.assert_array_equal(part[[0, 2]], whole[[3, 1]])
    away = draw([0, 1, 2, 3], prompted._replace(weights=-prompted.weights))
    assert np.mean(away == whole) < 0.9  # the prompts have an effect


@pytest.mark.slow
def test_prompts_are_texts_and_images(workdir, tmp_path):
    file = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 20, 3), np.uint8)).save(file)
    read = load_perceptor(built(image_prompt=f"{file}:2"), workdir)
    np.testing.assert_array_equal(read.weights, np.array([1, -0.5, 2], np.float32))
    np.testing.assert_allclose(np.linalg.norm(read.targets, axis=1), 1, rtol=1e-5)
    alone = load_perceptor(built(prompt="", image_prompt=str(file)), workdir)
    np.testing.assert_allclose(alone.targets, read.targets[2:], rtol=1e-5)


@pytest.mark.parametrize(
    ("guidance", "problem"),
    [
        ({"image_prompt": "no.png"}, r"config\.guidance\.image_prompt='no.png': there is no such"),
        ({"prompt": "a " * 20}, r"config\.guidance\.prompt='a a .* takes 14; leave out some 6"),
        ({"perceptor": "nowhere"}, "perceptor='nowhere': there is no such folder; give a folder"),
        ({"perceptor": "tests"}, "perceptor='tests' is no folder of a CLIP: it has no config.json"),
    ],
)
def test_what_cannot_be_read_is_one_line(workdir, guidance, problem):
    with pytest.raises(ValueError, match=problem) as caught:
        load_perceptor(built(**guidance), workdir)
    assert "\n" not in str(caught.value)


def test_missing_perceptor_is_one_line(tmp_path):
    with pytest.raises(
        ConfigError, match=r"no perceptor in .*clip yet; run --mode=train_perceptor"
    ):
        load_perceptor(built(), Workdir(tmp_path))
