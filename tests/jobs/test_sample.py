"""Tasks with pictures on a network that was never trained: what is given comes back, in its place.

Whether posteriors are right is asked in test_inverse_problems.py, where they are known.
"""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, configuration

from errors import ConfigError
from experiment import build
from experiment.tasks import TASKS, GuidanceOptions, Restoration
from jobs.sample import TaskRun

FIELDS = TINY | {
    "sampling.name": "ddim",
    "sampling.steps": 3,
    "sampling.final_step": "denoise",
    "eval.batch_size": 8,
}


def built(**sampling):
    given = {f"sampling.{name}": value for name, value in sampling.items()}
    config = configuration({name: None for name in ("sampling.variant",)} | FIELDS | given)
    return build.build(config, explicit=frozenset(given))


@pytest.fixture(scope="module")
def denoiser():
    experiment = built()
    return experiment.denoiser(experiment.trainer.init(jax.random.key(0)))


def answers(denoiser, count, **sampling):
    experiment = built(**sampling)
    return experiment, TaskRun(experiment, experiment.task).answer(denoiser, count)


@pytest.mark.slow
def test_known_pixels_come_back_and_sample_k_is_of_picture_k_modulo_their_number(denoiser):
    experiment, found = answers(
        denoiser, 8, task="inpaint", input="test:0-2", mask="left", posterior="projection"
    )
    data = experiment.data
    wanted = data.quantizer.to_uint8(data.test[np.arange(8) % 3])
    np.testing.assert_array_equal(found.images[:, :, :4], wanted[:, :, :4])
    assert (found.images[:, :, 4:] != wanted[:, :, 4:]).mean() > 0.5
    assert (found.images[0] != found.images[3]).any()  # two answers to one question
    assert "off by 0.0" in found.told
    # Three rows of a picture: given, masked, two samples.
    assert found.picture.shape == ((3 * 9 - 1) * 5, (4 * 9 - 1) * 5, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "posterior"), [("mri", "pigdm"), ("super_resolve", "dps")])
def test_guided_samples_come_nearer_to_their_measurements(denoiser, posterior, task):
    """With 20 steps of noise a network that knows nothing still learns what was measured."""
    options = {"task": task, "input": "test:0-3", "eta": 1.0, "steps": 20, "posterior": posterior}
    _, found = answers(denoiser, 8, **options)
    _, unguided = answers(denoiser, 8, **options, restoration_scale=1e-6)

    def off(answer):
        return float(answer.told.split("off by ")[1].split()[0])

    assert off(found) < 0.8 * off(unguided)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "options", "measure"),
    [
        (
            "super_resolve",
            {"factor": 4},
            lambda image: image.reshape(2, 4, 2, 4, 1).mean(axis=(1, 3)),
        ),
        ("compressed_sensing", {"fraction": 0.5}, None),
    ],
)
def test_a_measured_input_means_what_measuring_the_image_means(tmp_path, task, options, measure):
    image = np.random.default_rng(0).uniform(0, 1, (8, 8, 1)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    simulated = built(task=task, input=str(tmp_path / "image.npy"), **options)
    operator = simulated.task.operator
    y = measure(image) if measure else np.asarray(operator(jnp.asarray(image)[None]))[0]
    np.save(tmp_path / "y.npy", y)
    given = built(task=task, input=str(tmp_path / "y.npy"), measured=True, **options)
    first, second = (
        TaskRun(experiment, experiment.task)._measurement for experiment in (simulated, given)
    )
    np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.slow
def test_grey_pictures_are_measurements_of_colour(tmp_path):
    image = np.random.default_rng(0).uniform(0, 1, (8, 8, 3)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "grey.npy", image.mean(axis=-1, keepdims=True))
    runs = []
    for name, measured in (("image", False), ("grey", True)):
        config = configuration(
            FIELDS
            | {"data.channels": 3, "data.name": "cifar10", "sampling.task": "colorize"}
            | {"sampling.input": str(tmp_path / f"{name}.npy"), "sampling.measured": measured}
            | {"sampling.variant": None}
        )
        experiment = build.build(config)
        runs.append(TaskRun(experiment, experiment.task)._measurement)
    np.testing.assert_allclose(*runs, atol=1e-5)


@pytest.mark.slow
def test_noise_is_added_once_and_known(denoiser):
    _, found = answers(denoiser, 4, task="inpaint", input="test:0", mask="left", noise=0.1)
    clean = built(task="inpaint", input="test:0", mask="left")
    clean = TaskRun(clean, clean.task)._measurement
    noise = (found.arrays["measurement"] - clean)[:, :, :4] / 2  # the network sees [-1, 1]
    assert 0.06 < noise.std() < 0.14
    np.testing.assert_array_equal(found.arrays["measurement"][:, :, 4:], 0)  # unknown, not noise


@pytest.mark.slow
def test_strokes_are_repainted_from_where_noise_is_added(denoiser):
    _, near = answers(denoiser, 4, task="stroke", input="test:0-3", start=0.01)
    experiment, far = answers(denoiser, 4, task="stroke", input="test:0-3", start=0.9)
    given = experiment.data.quantizer.to_uint8(experiment.data.test[:4])
    distances = [np.abs(found.images.astype(float) - given).mean() for found in (near, far)]
    assert distances[0] < 8 < distances[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "ode"])
def test_images_survive_their_codes(denoiser, name):
    options = {"steps": 60} if name == "ddim" else {"steps": None}
    options |= {"task": "reconstruct", "input": "test:0-2", "name": name}
    experiment, found = answers(denoiser, 3, **options)
    given = experiment.data.quantizer.to_uint8(experiment.data.test[:3])
    assert found.arrays["latent"].shape == (3, 8, 8, 1)
    assert np.abs(found.images.astype(float) - given).mean() < 255 / 16


@pytest.mark.slow
def test_interpolation_goes_from_the_one_to_the_other(denoiser):
    experiment, found = answers(denoiser, 5, task="interpolate", input="test:0,test:1", steps=60)
    given = experiment.data.quantizer.to_uint8(experiment.data.test[:2]).astype(float)
    ends = found.images[[0, -1]].astype(float)
    assert np.abs(ends - given).mean() < 255 / 16
    assert len(found.images) == 5


# --- what cannot be done ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"task": "paint"}, r"config\.sampling\.task='paint' is unknown; choose one of: colorize"),
        ({"task": "inpaint", "mask": "left"}, r"config\.sampling\.input='' names no picture"),
        (
            {"task": "inpaint", "input": "test"},
            r"config\.sampling\.mask='' is not a file; give one",
        ),
        ({"task": "mri", "input": "test", "mask": "left"}, r"mask='left' is not a field of"),
        (
            {"task": "mri", "input": "test", "posterior": "exact"},
            r"posterior='exact' is unknown; choose one of: projection, pigdm, dps",
        ),
        (
            {"task": "mri", "input": "test", "strength": 0.5},
            r"strength=0\.5 is of posterior=projection, not of 'pigdm'",
        ),
        (
            {"task": "mri", "input": "test", "posterior": "projection", "strength": 2.0},
            r"strength=2\.0 must lie above 0, up to 1",
        ),
        ({"task": "deblur", "input": "test", "noise": -1.0}, r"noise=-1\.0 must be finite, 0 or"),
        ({"task": "deblur", "input": "test", "blur_std": 0.0}, r"blur_std=0\.0 must be finite and"),
        ({"task": "deblur", "input": "test", "posterior": "projection"}, "would undo the blur"),
        ({"task": "super_resolve", "input": "test", "factor": 3}, r"factor=3 must divide"),
        ({"task": "colorize", "input": "test"}, "needs images of several channels"),
        (
            {"task": "inpaint", "input": "test", "mask": "top", "posterior": "projection"}
            | {"name": "ode", "steps": None},
            r"posterior='projection' acts between fixed steps, and name='ode'",
        ),
        ({"start": 0.5}, r"start=0\.5 and task='generate': stroke starts at noised pictures"),
        ({"task": "stroke", "input": "test"}, r"start=None and task='stroke'"),
        (
            {"task": "stroke", "input": "test", "start": 0.5, "name": "ode", "steps": None},
            "name='ode' chooses its own steps",
        ),
        ({"task": "stroke", "input": "test", "start": 1e-4}, "must lie above t_min"),
        (
            {"task": "reconstruct", "input": "test", "eta": 1.0},
            r"name='ddim' goes one way; for task='reconstruct'",
        ),
        ({"guidance": "clip"}, r"guidance='clip' is unknown; choose one of: none, classifier"),
        ({"guidance": "classifier_free"}, "is for class-conditional networks"),
        ({"guidance": "classifier", "labels": (1.7,)}, r"labels=\(1\.7,\) must be whole numbers"),
        (
            {"name": "pc", "predictor": "ancestral", "guidance_form": "mean"},
            "guidance_form='mean' is of guidance='classifier' alone",
        ),
        (
            {"task": "mri", "input": "test", "posterior": "projection", "noise": 0.1},
            r"noise=0\.1 would be copied into the samples",
        ),
        (
            {"task": "reconstruct", "input": "test", "clip": "range"},
            "clip='range' has no part in task='reconstruct'",
        ),
        ({"guidance_scale": 2.0}, r"guidance_scale=2\.0 has no use with guidance='none'"),
        *(
            ({"guidance": "classifier_free", "guidance_interval": wrong}, "two increasing times")
            for wrong in ((0.2,), (), (0.8, 0.2), (-1.0, 0.5), ("a", "b"))
        ),
        (
            {"guidance": "classifier", "guidance_interval": (0.1, 0.9)},
            "is of guidance='classifier_free' alone",
        ),
        (
            {"guidance": "classifier", "labels": (1, 10)},
            r"labels=\(1, 10\) is not a class.*r\.num_classes=10",
        ),
        ({"guidance": "classifier", "label": 10}, r"label=10 is not a class"),
        ({"guidance": "classifier", "labels": (1,), "label": 1}, "give one of them"),
        ({"labels": (1,)}, r"is not a class, with config\.model\.num_classes=0; valid is nothing"),
    ],
)
def test_what_cannot_be_done_is_one_line_before_anything_runs(sampling, message):
    with pytest.raises(ConfigError, match=message) as caught:
        built(**sampling)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("config.sampling.")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (
            {"task": "mri", "input": "test:999"},
            r"config\.sampling\.input='test:999' does not exist",
        ),
        (
            {"task": "mri", "input": "none.png"},
            r"config\.sampling\.input='none\.png' is not a file",
        ),
        (
            {"task": "mri", "input": "test", "measured": True},
            "must be a measurement, not a test image",
        ),
        ({"task": "interpolate", "input": "test:0-2"}, "are 3 pictures; interpolate goes between"),
    ],
)
def test_wrong_pictures_are_one_line_before_anything_runs(sampling, message):
    experiment = built(**sampling)
    with pytest.raises(ConfigError, match=message):
        TaskRun(experiment, experiment.task)


def test_every_option_of_a_restoration_that_is_of_one_posterior_alone_is_refused_elsewhere():
    for name, own in (("strength", "projection"), ("data_std", "pigdm")):
        assert dataclasses.replace(Restoration(posterior=own), **{name: 0.5})
        with pytest.raises(ValueError, match=f"{name}=0.5 is of posterior"):
            Restoration(posterior="dps", **{name: 0.5})


# --- classes ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampling", "labels"),
    [({}, [0, 1, 2, 3, 4]), ({"label": 7}, [7] * 5), ({"labels": (3, 9)}, [3, 9, 3, 9, 3])],
)
def test_classes_are_balanced_or_those_given(sampling, labels):
    given = {f"sampling.{name}": value for name, value in sampling.items()}
    fields = {"model.num_classes": 10, "sampling.guidance": "classifier_free"}
    experiment = build.build(configuration(FIELDS | {"sampling.variant": None} | fields | given))
    numbers = experiment.place(np.arange(5))
    told = experiment.of_classes(experiment.denoiser({}), numbers)
    assert np.asarray(told.labels)[:5].tolist() == labels
    (guidance,) = told.guidances
    assert (guidance.null_label, guidance.scale, told.evaluations) == (10, 2.0, 2)
    assert experiment.evaluations == 2 * 4


def test_every_task_names_its_options_once():
    for classes in TASKS.values():
        fields = [dataclasses.fields(cls) for cls in (GuidanceOptions, *classes)]
        names = [field.name for field in itertools.chain(*fields)]
        assert len(names) == len(set(names))
