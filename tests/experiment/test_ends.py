"""The ends of paths in an experiment: where they come from, what is refused, and its remedy."""

import json
from functools import partial

import numpy as np
import pytest

from configs import bridge_digits, bridge_points
from errors import ConfigError
from experiment.build import build
from experiment.images import Images
from jobs.pairs import simulate_pairs
from jobs.training_job import classifier_job
from jobs.translate import task_run
from jobs.workdir import Workdir
from run_lib import check, moments

SMALL = {"model.features": 8, "model.depth": 1, "data.samples": 200, "training.batch_size": 8}
IMAGES = {"model.features": 8, "training.batch_size": 8}
FLOW = SMALL | {"coupling.name": "independent"}
BRIDGE = FLOW | {"sde.diffusion": 0.5, "sampling.name": "bridge"}
FEW = np.zeros((3, 8, 8, 1), np.uint8)
TRANSLATE = {"task.name": "translate", "task.input": "test:0-3"}


def built(fields=FLOW, *, config=bridge_points, variant=None):
    made = config.get_config(*([variant] if variant else []))
    for name, value in fields.items():
        section, field = name.split(".")
        made[section][field] = value
    return build(made, overrides=frozenset(fields))


def test_the_default_has_independent_noise_for_ends():
    experiment = built({"coupling.data": ""} | FLOW)
    assert experiment.ends.plain
    assert not experiment.trainer.coupled
    assert experiment.ends.starts([0, 1], seed=0) is None


def test_samples_start_at_test_rows_that_depend_on_their_index_alone():
    ends = built().ends
    starts = np.asarray(ends.starts(range(12), seed=1))
    again = np.asarray(ends.starts([7, 0, 11, 3], seed=1))
    np.testing.assert_array_equal(again, starts[[7, 0, 11, 3]])
    test = {tuple(row) for row in ends.other.splits.test}
    assert {tuple(row) for row in starts} <= test
    assert len({tuple(row) for row in starts}) > 4


def test_both_data_sets_have_the_units_of_the_first():
    ends = built(FLOW | {"data.mean": (1.0, 0.0), "data.std": (2.0, 2.0)}).ends
    assert ends.other.scaler == ends.data.scaler
    pairs = ends.training_batches(8, 0, labels=False).at(0)
    assert pairs.shape == (8, 2, 2)


@pytest.mark.slow
def test_images_are_paired_with_what_their_measurement_leaves():
    experiment = built(IMAGES, config=bridge_digits, variant="super_resolve")
    x0, x1 = experiment.ends.training_batches(8, 0, labels=False).at(0).swapaxes(0, 1)
    blocks = x0.reshape(8, 4, 2, 4, 2, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(x1, blocks.repeat(2, axis=1).repeat(2, axis=2), atol=1e-5)


@pytest.mark.slow
def test_sets_whose_rows_are_no_pairs_are_refused(tmp_path):
    """By training, and by the check before it."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "short.npy", rng.normal(size=(90, 2)))
    fields = FLOW | {"coupling.name": "paired", "coupling.data": str(tmp_path / "short.npy")}
    message = r"'points:moons' has 180 for training and config\.coupling\.data=.* 81; give pairs in"
    with pytest.raises(ConfigError, match=message):
        built(fields).ends.training_batches(8, 0, labels=False)
    with pytest.raises(ConfigError, match=message):
        check(built(fields), Workdir(tmp_path / "run"))
    remedy = fields | {"coupling.name": "independent"}
    check(built(remedy), Workdir(tmp_path / "run"))
    assert built(remedy).ends.training_batches(8, 0, labels=False).at(0).shape == (8, 2, 2)


@pytest.mark.slow
def test_check_counts_images_without_reading_them(tmp_path, monkeypatch):
    np.savez(tmp_path / "few.npz", train=np.zeros((7, 8, 8, 1), np.uint8), test=FEW)
    fields = IMAGES | {"coupling.name": "paired", "coupling.data": str(tmp_path / "few.npz")}
    experiment = built(fields, config=bridge_digits)
    monkeypatch.setattr(Images, "_load", lambda self: pytest.fail("images are read"))
    with pytest.raises(
        ConfigError, match=r"'digits:3' has 165 for training and .*few\.npz' 7; give"
    ):
        check(experiment, Workdir(tmp_path / "run"))


@pytest.mark.slow
def test_check_refuses_a_run_of_pairs_that_training_refuses(tmp_path):
    """It may be missing, have no checkpoint, or have other data sets."""
    fields = FLOW | {"coupling.name": "simulated", "coupling.run": str(tmp_path / "other")}
    other = Workdir(tmp_path / "other")
    rings = built(FLOW | {"coupling.data": "points:rings"}).config
    experiment = built(fields)
    for saved, problem in (
        (None, r": there is no run in .*other"),
        (
            rings,
            r" has .* and config\.coupling\.data='points:rings', and this run .*; give the same",
        ),
        (built().config, r": there is no checkpoint in .*other yet; run --mode=train"),
    ):
        if saved is not None:
            other.config.parent.mkdir(exist_ok=True)
            other.config.write_text(json.dumps(saved))
        for use in (partial(check, workdir=Workdir(tmp_path / "run")), simulate_pairs):
            with pytest.raises(
                ConfigError, match=rf"^config\.coupling\.run='.*other'{problem}"
            ) as error:
                use(experiment)
            assert "\n" not in str(error.value)


def test_sets_of_different_shapes_are_refused(tmp_path):
    np.save(tmp_path / "wide.npy", np.zeros((40, 3)))
    message = (
        r"config\.coupling\.data='.*wide\.npy' has rows of shape \(3,\), but config\.data\.name="
        r"'points:moons' has \(2,\); give two data sets of one shape"
    )
    with pytest.raises(ConfigError, match=message):
        built(FLOW | {"coupling.data": str(tmp_path / "wide.npy")})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coupling.name": "dummy"}, r"config\.coupling\.name='dummy' is unknown; choose one of: "),
        ({"coupling.data": "points:spiral"}, r"config\.coupling\.data='points:spiral' is unknown"),
        ({"coupling.data": "series:waves"}, r"coupling\.data='series:waves' holds series, but"),
        ({"coupling.data": "no.npy"}, r"^config\.coupling\.data='no\.npy': the file is missing"),
        ({"coupling.data": "digits"}, r"^config\.coupling\.data='digits' is not points; give"),
        ({"coupling.measurement": "colorize"}, r"both say what x1 is; leave one out"),
        ({"coupling.data": "", "coupling.name": "paired"}, r"give config\.coupling\.data=FILE"),
        ({"coupling.name": "simulated"}, r"config\.coupling\.name='simulated'.*coupling\.run=RUN"),
        ({"sampling.name": "pc"}, r"adds noise as if .* choose ode, or without"),
        ({"sampling.eta": 0.5}, r"adds noise as if"),
        ({"sampling.name": "sde"}, r"adds noise as if"),
        ({"sde.diffusion": 0.5}, r"'ddim' does not follow .*diffusion=0\.5; choose bridge"),
        ({"loss.name": "sliced"}, r"config\.loss\.name='sliced' takes the ends for noise"),
        (TRANSLATE | {"coupling.data": ""}, r"'translate' maps between two data sets"),
        ({"task.name": "reconstruct", "task.input": "test"}, r"is for images"),
        (
            TRANSLATE | {"task.direction": "from_data", "sampling.name": "heun"},
            r"inverts the flow, which config\.sampling\.name='heun' cannot do",
        ),
        (
            {"task.input": "test"},
            r"name='generate'; .*; input is used with config\.task\.name=inpaint, .* or translate",
        ),
        (TRANSLATE | {"task.direction": "up"}, r"direction='up' is unknown; choose one of: from_"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_line(fields, message):
    kept = {name: value for name, value in FLOW.items() if name not in fields}
    if fields.get("sampling.name", "ddim") in ("pc", "sde"):
        kept["sampling.final_step"] = "denoise"
    with pytest.raises(ConfigError, match=message) as error:
        built(kept | fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"coupling.name": "independent"}, r"takes no ends of .*='independent'; choose reference"),
        ({"sde.diffusion": 0.0}, r"name='reference' is a Brownian motion; give"),
        (
            {"sampling.t_min": 1e-3},
            r"num_timesteps=30 trains; give config\.sampling\.t_min=0\.0022",
        ),
        ({"loss.num_timesteps": 1}, r"num_timesteps=1 must lie in \[2, 1000\]"),
    ],
)
def test_mean_matching_has_chains_for_its_paths(fields, message):
    assert built(SMALL, variant="dsb").trainer.loss.num_timesteps == 30
    with pytest.raises(ConfigError, match=message):
        built(SMALL | fields, variant="dsb")


def test_images_do_not_go_to_points():
    with pytest.raises(ConfigError, match=r"'points:moons' holds points, but .* images; give"):
        built(IMAGES | {"coupling.data": "points:moons"}, config=bridge_digits)


def test_what_relies_on_noise_is_refused_of_other_ends(tmp_path):
    experiment = built()
    for use in (
        lambda: moments(experiment, Workdir(tmp_path)),
        lambda: classifier_job(experiment),
    ):
        with pytest.raises(ConfigError, match=r"is for networks of data and noise, and .* without"):
            use()
    assert experiment.ends.sets == ("points:moons", "points:eight_gaussians")
    classifier_job(built(FLOW | {"coupling.data": "", "classifier.name": "mlp_classifier"}))


def test_a_bridge_translates_in_one_direction():
    assert built(BRIDGE | TRANSLATE).sampler.task.options.translates
    back = BRIDGE | TRANSLATE | {"task.direction": "from_data"}
    with pytest.raises(ConfigError, match=r"have changed places"):
        built(back)
    swapped = {"data.name": "points:eight_gaussians", "coupling.data": "points:moons"}
    assert built(BRIDGE | TRANSLATE | swapped).sampler.task.options.translates  # the remedy
    images = IMAGES | TRANSLATE | {"task.direction": "from_data"}
    with pytest.raises(ConfigError, match=r"choose to_data, .*coupling\.measurement='super_res"):
        built(images, config=bridge_digits, variant="super_resolve")


def test_inputs_of_a_translation_are_rows_of_the_set_that_they_come_from(tmp_path):
    for direction, source in (("to_data", "other"), ("from_data", "data")):
        experiment = built(FLOW | TRANSLATE | {"task.direction": direction})
        run = task_run(experiment, experiment.sampler.task, 3)
        rows = getattr(experiment.ends, source).splits.test
        np.testing.assert_array_equal(run.inputs, rows[:3])
    np.save(tmp_path / "wide.npy", np.zeros((4, 3)))
    experiment = built(FLOW | TRANSLATE | {"task.input": str(tmp_path / "wide.npy")})
    with pytest.raises(ConfigError, match=r"config\.task\.input=.* has shape \(3,\), but must"):
        task_run(experiment, experiment.sampler.task, 3)
