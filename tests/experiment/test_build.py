"""Building an experiment costs nothing, and refuses what does not go together."""

import jax
import pytest
from command_line import TINY, UNET, configuration

from configs import vp_cifar10, vp_swiss_roll
from errors import ConfigError
from experiment.build import build
from training.averages import HalfLifeAverage, MovingAverage


def test_a_network_of_gray_levels_has_an_output_for_each():
    fields = {"denoiser.parameterization": "levels", "data.dequantization": "none"}
    model = build(configuration(UNET | fields)).model
    assert model.network.out_channels == 17


def test_points_have_no_gray_levels():
    config = vp_swiss_roll.get_config()
    config.denoiser.parameterization = "levels"
    config.denoiser.sigma_data = 0.5
    with pytest.raises(ConfigError, match=r"denoiser\.parameterization='levels'.*choose eps"):
        build(config)


@pytest.mark.slow
def test_building_allocates_nothing_and_reads_no_data():
    before = {id(array) for array in jax.live_arrays()}
    config = vp_cifar10.get_config()
    config.data.dir = "/nowhere"
    experiment = build(config)
    kept = [array for array in jax.live_arrays() if id(array) not in before]
    assert sum(array.size for array in kept) < 1000
    with pytest.raises(ConfigError, match="cifar10"):
        _ = experiment.data.splits


def test_limits_of_the_classifier_bind_only_those_who_use_it():
    """Its batch need not divide over the devices of those who train without one."""
    experiment = build(configuration(TINY | {"classifier.batch_size": 30}))
    with pytest.raises(ConfigError, match=r"config\.classifier\.batch_size=30 does not divide"):
        experiment.parts.classifier.check(experiment.data)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"sde.name": "ddpm", "sde.num_timesteps": 100, "times.name": "timesteps"},
            r"config\.times\.num_timesteps=1000, but config\.sde\.num_timesteps=100; set both",
        ),
        (
            {"sde.name": "ddpm", "sde.num_timesteps": 100, "denoiser.conditioning": "timestep"},
            r"config\.denoiser\.num_timesteps=1000, but config\.sde\.num_timesteps=100; set both",
        ),
        (
            {"times.name": "timesteps"},
            r"times\.name='timesteps' trains at t = 0 too, .*sde\.name='vp' has no noise; "
            "choose uniform or stratified",
        ),
        (
            {"denoiser.energy": True, "denoiser.parameterization": "eps_learned_variance"},
            r"config\.denoiser\.energy=True needs a network with one output.*; choose eps, or set",
        ),
        (
            {"denoiser.parameterization": "levels"},
            r"config\.data\.dequantization='uniform' adds noise to gray levels, which config\."
            r"denoiser\.parameterization='levels' predicts; choose none or truncated_normal",
        ),
        (
            {"denoiser.parameterization": "levels", "data.dequantization": "none"}
            | {"model.name": "mlp"},
            r"levels' needs a network of images .*; choose config\.model\.name=ncsnpp",
        ),
        (
            {"denoiser.parameterization": "levels", "denoiser.energy": True},
            r"config\.denoiser\.energy=True needs a network with one output.*'levels'",
        ),
        (
            {"discrete_bound.variance": "learned"},
            r"config\.discrete_bound\.variance='learned' needs a network that predicts variances",
        ),
        (
            {"augmentation.probability": 0.1},
            r"config\.augmentation\.probability=0\.1 makes 9 labels, config\.model\."
            r"augment_labels=0 takes 0; set it to 9, or config\.augmentation\.probability=0$",
        ),
        (
            {"augmentation.probability": 0.1, "model.name": "ddpm", "model.num_groups": 8},
            r"which config\.model\.name='ddpm' does not take; choose adm or ncsnpp, or config",
        ),
        (
            {"augmentation.probability": 0.1, "model.augment_labels": 9, "data.random_flip": True},
            r"config\.augmentation\.probability=0\.1 mirrors images .*; set config\.data\."
            r"random_flip=False, or config\.augmentation\.x_flip=False$",
        ),
        ({"seed": -1}, r"config\.seed=-1 must lie in \[0, 4294967295\]"),
        ({"data.resize": "scale"}, r"config\.data\.resize='scale' is unknown; choose one of: crop"),
        (
            {"guidance.name": "classifier", "model.num_classes": 4},
            r"equal numbers of classes, but config\.classifier\.num_classes=10 and "
            r"config\.model\.num_classes=4",
        ),
        (
            {"guidance.name": "classifier_free", "model.num_classes": 4}
            | {"training.label_dropout": 0.0},
            r"without a class too, which config\.training\.label_dropout=0 never trains",
        ),
    ],
)
def test_choices_that_do_not_go_together_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(configuration(UNET | fields))
    assert str(caught.value).startswith("config.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["scale", "rotation", "x_flip"])
def test_a_strength_of_no_augmentation_is_refused_on_the_command_line(name):
    fields = {f"augmentation.{name}": False if name == "x_flip" else 0.0}
    with pytest.raises(
        ConfigError,
        match=rf"^config\.augmentation\.{name} is not used with .*; raise the probability, .*out$",
    ):
        build(configuration(TINY | fields), overrides=fields)
    build(configuration(TINY | fields))  # in a file


@pytest.mark.slow
def test_images_may_be_mirrored_in_the_data_or_by_the_augmentation():
    for more in ({"data.random_flip": False}, {"augmentation.x_flip": False}):
        fields = {"augmentation.probability": 0.1, "model.augment_labels": 9}
        assert build(
            configuration(UNET | {"data.random_flip": True} | fields | more), overrides=more
        ).trainer.augment


@pytest.mark.slow
def test_experiments_built_again_share_their_programs():
    """Or every build in a long process would add programs that are never freed."""
    first, second = (build(configuration(TINY)) for _ in range(2))
    params = jax.eval_shape(first.trainer.init, jax.random.key(0))
    for make in (lambda e: e.model.denoiser, lambda e: e.parts.classifier.classifier):
        for dropout in (None, jax.random.key(0)):
            structures = {
                jax.tree.structure(make(experiment)(params, dropout)): experiment
                for experiment in (first, second)
            }
            assert len(structures) == 1


def test_half_life_in_images_takes_the_place_of_the_rate_of_a_file():
    experiment = build(configuration(TINY | {"ema.half_life_images": 5e4}))
    assert experiment.trainer.average == HalfLifeAverage(half_life_images=5e4, batch_size=16)
    ema = experiment.config["ema"]
    assert (ema["rate"], ema["half_life_images"], ema["ramp_up"]) == (None, 5e4, 0.05)


@pytest.mark.slow
def test_rate_and_half_life_are_not_given_together_and_the_remedies_work():
    config = configuration(TINY | {"ema.rate": 0.9, "ema.half_life_images": 5e4})
    with pytest.raises(ConfigError, match=r"rate=0\.9 and config\.ema\.half_life_images=50000\.0 "):
        build(config, overrides={"ema.rate", "ema.half_life_images"})
    build(config, overrides={"ema.half_life_images"})
    config.ema.half_life_images = None
    average = build(config, overrides={"ema.rate", "ema.half_life_images"}).trainer.average
    assert average == MovingAverage(rate=0.9)
    config.ema.ramp_up = 0.1
    with pytest.raises(ConfigError, match=r"config\.ema\.ramp_up=0\.1 is not used; .* used are: "):
        build(config, overrides={"ema.ramp_up"})
