"""Tasks on a network that was never trained: known pixels return to their places.

Whether posteriors are right is tested in tests/guidance/test_posterior.py, where they are known.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, configuration

from errors import ConfigError
from experiment.build import build
from experiment.sampler import Checkpoint
from jobs.sample import TaskRun, draw_all, draw_plain

FIELDS = TINY | {
    "sampling.name": "ddim",
    "sampling.steps": 3,
    "sampling.final_step": "denoise",
    "sampling.variant": None,
    "eval.batch_size": 8,
}


def built(fields):
    return build(configuration(FIELDS | fields), overrides=frozenset(fields))


def task(name, images, **options):
    """The fields of a task on images; an option is a field of config.task."""
    fields = {"name": name, "input": str(images)} | options
    return {f"task.{field}": value for field, value in fields.items()}


@pytest.fixture(scope="module")
def checkpoint():
    experiment = built({})
    params = jax.jit(experiment.trainer.init)(jax.random.key(0))
    return Checkpoint(step=0, denoiser=experiment.model.denoiser(params))


def run_task(checkpoint, count, fields):
    experiment = built(fields)
    run = TaskRun(experiment, experiment.sampler.task, count)
    return experiment, run.run(checkpoint)


def measurement(fields):
    """y as the sampler gets it."""
    experiment = built(fields)
    run = TaskRun(experiment, experiment.sampler.task, 1)
    return run._measurement


@pytest.mark.slow
def test_known_pixels_return_and_sample_k_belongs_to_input_k_modulo_their_number(checkpoint):
    fields = task("inpaint", "test:0-2", mask="left", method="projection")
    experiment, found = run_task(checkpoint, 8, fields)
    data = experiment.data
    wanted = data.quantizer.to_uint8(data.splits.test[np.arange(8) % 3])
    np.testing.assert_array_equal(found.samples[:, :, :4], wanted[:, :, :4])
    assert (found.samples[:, :, 4:] != wanted[:, :, 4:]).mean() > 0.5
    assert (found.samples[0] != found.samples[3]).any()  # two samples of one posterior
    assert "measurement error 0.0" in found.summary
    # Three rows of a figure: input, masked input, two samples.
    assert found.figure.shape == ((3 * 9 - 1) * 5, (4 * 9 - 1) * 5, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "method"), [("mri", "pigdm"), ("super_resolve", "dps")])
def test_guided_samples_come_nearer_to_their_measurements(checkpoint, name, method):
    """With 20 steps of noise, even a network that knows nothing follows the measurement."""
    sampling = {"sampling.eta": 1.0, "sampling.steps": 20}
    fields = sampling | task(name, "test:0-3", method=method)
    _, found = run_task(checkpoint, 8, fields)
    _, unguided = run_task(checkpoint, 8, fields | {"task.guidance_scale": 1e-6})

    def error(result):
        return float(result.summary.split("measurement error ")[1].split()[0])

    assert error(found) < 0.8 * error(unguided)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "measure"),
    [
        (
            "super_resolve",
            {"factor": 4},
            lambda image: image.reshape(2, 4, 2, 4, 1).mean(axis=(1, 3)),
        ),
        ("compressed_sensing", {"fraction": 0.5}, None),
    ],
)
def test_measured_input_means_the_same_as_measuring_the_image(tmp_path, name, options, measure):
    image = np.random.default_rng(0).uniform(0, 1, (8, 8, 1)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    simulated = task(name, tmp_path / "image.npy", **options)
    operator = built(simulated).sampler.task.operator
    y = measure(image) if measure else np.asarray(operator(jnp.asarray(image)[None]))[0]
    np.save(tmp_path / "y.npy", y)
    given = task(name, tmp_path / "y.npy", input_is_measurement=True, **options)
    np.testing.assert_allclose(measurement(simulated), measurement(given), atol=1e-5)


@pytest.mark.slow
def test_gray_images_are_measurements_of_color(tmp_path):
    image = np.random.default_rng(0).uniform(0, 1, (8, 8, 3)).astype(np.float32)
    np.save(tmp_path / "image.npy", image)
    np.save(tmp_path / "gray.npy", image.mean(axis=-1, keepdims=True))
    color = {"data.channels": 3, "data.name": "cifar10"}
    found = [
        measurement(color | task("colorize", tmp_path / f"{name}.npy", input_is_measurement=given))
        for name, given in (("image", False), ("gray", True))
    ]
    np.testing.assert_allclose(*found, atol=1e-5)


@pytest.mark.slow
def test_noise_is_added_once_and_known(checkpoint):
    fields = task("inpaint", "test:0", mask="left")
    _, found = run_task(checkpoint, 4, fields | {"task.noise": 0.1})
    clean = measurement(fields)
    noise = (found.arrays["measurement"] - clean)[:, :, :4] / 2  # the network sees [-1, 1]
    assert 0.06 < noise.std() < 0.14
    np.testing.assert_array_equal(found.arrays["measurement"][:, :, 4:], 0)  # unknown, not noise


@pytest.mark.slow
def test_sdedit_repaints_from_the_time_up_to_which_noise_is_added(checkpoint):
    _, near = run_task(checkpoint, 4, task("sdedit", "test:0-3", start=0.01))
    experiment, far = run_task(checkpoint, 4, task("sdedit", "test:0-3", start=0.9))
    given = experiment.data.quantizer.to_uint8(experiment.data.splits.test[:4])
    distances = [np.abs(found.samples.astype(float) - given).mean() for found in (near, far)]
    assert distances[0] < 8 < distances[1]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ddim", "ode"])
def test_images_are_reconstructed_from_their_latents(checkpoint, name):
    steps = {"sampling.name": name, "sampling.steps": 60 if name == "ddim" else None}
    experiment, found = run_task(checkpoint, 3, steps | task("reconstruct", "test:0-2"))
    given = experiment.data.quantizer.to_uint8(experiment.data.splits.test[:3])
    assert found.arrays["latent"].shape == (3, 8, 8, 1)
    assert np.abs(found.samples.astype(float) - given).mean() < 255 / 16


@pytest.mark.slow
def test_interpolation_begins_and_ends_at_the_two_images(checkpoint):
    fields = {"sampling.steps": 60} | task("interpolate", "test:0,test:1")
    experiment, found = run_task(checkpoint, 5, fields)
    given = experiment.data.quantizer.to_uint8(experiment.data.splits.test[:2]).astype(float)
    ends = found.samples[[0, -1]].astype(float)
    assert np.abs(ends - given).mean() < 255 / 16
    assert len(found.samples) == 5


@pytest.mark.slow
def test_plain_samples_do_not_depend_on_the_batches(checkpoint):
    experiment = built({})
    images, nfe, _ = draw_all(experiment, checkpoint, 11)  # batches of 6 and 5
    assert (len(images), nfe) == (11, experiment.sampler.evaluations)
    whole, *_ = draw_all(built({"eval.batch_size": 12}), checkpoint, 11)
    assert np.abs(images.astype(int) - whole).max() <= 16  # one of 17 gray levels, rarely
    assert np.mean(images == whole) > 0.99
    plain = draw_plain(experiment, checkpoint, 3)
    np.testing.assert_array_equal(plain.samples, images[:3])
    assert plain.summary == f"NFE {nfe}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            task("mri", "test:999"),
            r"config\.task\.input='test:999' does not exist; the test images are test:0",
        ),
        (task("mri", "none.png"), r"config\.task\.input='none\.png': there is no such file"),
        (
            task("mri", "test", input_is_measurement=True),
            r"config\.task\.input='test' must be a measurement, not a test image",
        ),
        (
            task("interpolate", "test:0-2"),
            r"config\.task\.input='test:0-2' has 3 images; interpolate takes two, such as",
        ),
        (
            task("mri", "test:0-4"),
            r"--num_samples=4 is too small for config\.task\.input='test:0-4' with name='mri'; "
            "give at least 5, or fewer images",
        ),
    ],
)
def test_wrong_inputs_are_refused_before_anything_runs(fields, message):
    experiment = built(fields)
    with pytest.raises(ConfigError, match=message):
        TaskRun(experiment, experiment.sampler.task, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "labels"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"sampling.label": 7}, [7] * 5),
        ({"sampling.labels": (3, 9)}, [3, 9, 3, 9, 3]),
    ],
)
def test_classes_are_balanced_or_those_given(fields, labels):
    guided = {"model.num_classes": 10, "guidance.name": "classifier_free"}
    experiment = built(guided | fields)
    checkpoint = Checkpoint(step=0, denoiser=experiment.model.denoiser({}))
    indices = experiment.parallel.place(np.arange(5))
    labeled = experiment.sampler.with_classes(checkpoint, indices)
    assert np.asarray(labeled.labels)[:5].tolist() == labels
    (guidance,) = labeled.guidances
    assert (guidance.null_label, guidance.scale, labeled.evaluations) == (10, 2.0, 2)
    assert experiment.sampler.evaluations == 2 * 4
    # A checkpoint is a value: what is drawn with it leaves it as it was.
    assert dataclasses.replace(checkpoint).denoiser.labels is None


UPSAMPLER = {
    "model.name": "adm",
    "model.channel_multipliers": (1,),
    "model.blocks_per_resolution": 1,
    "model.attention_resolutions": (),
    "model.head_width": 8,
    "model.upsampling": 2,
    "denoiser.parameterization": "x0",  # whatever it says is an image
    "task.name": "upsample",
    "task.input": "test:0-1",
}


@pytest.mark.slow
def test_sample_k_is_of_small_image_k_modulo_their_number():
    """In training and in a task, small images are means over blocks of pixels."""
    experiment = built(UPSAMPLER)
    params = jax.jit(experiment.trainer.init)(jax.random.key(0))
    kernel = params["output_conv"]["kernel"]  # it starts at 0
    params["output_conv"]["kernel"] = 0.1 * jax.random.normal(jax.random.key(1), kernel.shape)
    checkpoint = Checkpoint(step=0, denoiser=experiment.model.denoiser(params))
    run = TaskRun(experiment, experiment.sampler.task, 4)
    images = experiment.data.quantizer.to_uint8(experiment.data.splits.test[:2])
    means = images.reshape(2, 4, 2, 4, 2, 1).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(run.inputs, means, atol=1e-6)
    x = experiment.data.from_unit_range(images.astype(np.float32) / 255)
    trained = experiment.trainer.with_image(checkpoint.denoiser, jnp.asarray(x))
    given = run.condition(checkpoint.denoiser, jnp.arange(4)).denoiser
    np.testing.assert_allclose(given.image, np.tile(trained.image, (2, 1, 1, 1)), atol=1e-6)
    found = run.run(checkpoint)
    assert found.samples.shape == (4, 8, 8, 1)
    # The same noise beside the other input makes another image.
    swapped = built(UPSAMPLER | {"task.input": "test:1,test:0"})
    other = TaskRun(swapped, swapped.sampler.task, 4).run(checkpoint)
    assert (found.samples != other.samples).any(axis=(1, 2, 3)).all()
