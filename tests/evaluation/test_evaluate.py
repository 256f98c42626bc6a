"""Evaluations: the right numbers, once, in any batches and however often they are killed."""

import json
import math
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import gaussian
from command_line import TINY, configuration, flags, run, start, write_images

import run_lib
from data.batches import test_batch as batch_of_test_images
from errors import CheckpointError
from evaluation import evaluate as module
from experiment.build import build
from experiment.sampler import Checkpoint
from jobs.workdir import Workdir
from metrics.features import PIXELS
from sde_lib import VPSDE

STEPS = TINY["training.steps"]
TEST_IMAGES = 12


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    """Tiny in everything: 12 test images, 24 samples, tolerances of 1e-2."""
    images = write_images(tmp_path_factory.mktemp("data") / "images.npz", 32, TEST_IMAGES)
    return TINY | {
        "data.name": str(images),
        "training.checkpoint_every": 15,
        "likelihood.rtol": 1e-2,
        "likelihood.atol": 1e-2,
        "eval.dequantizations": 2,
        "eval.loss_repeats": 2,
        "eval.samples": 24,
        "eval.sampling_seeds": 2,
    }


@pytest.fixture(scope="module")
def trained(fields, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "trained"
    call = run(*flags("train", workdir, fields))
    assert call.status == 0, call.stderr
    return workdir


@pytest.fixture(scope="module")
def evaluated(trained, fields, tmp_path_factory):
    """The run, evaluated without interruption."""
    workdir = shutil.copytree(trained, tmp_path_factory.mktemp("evaluated") / "run")
    call = run(*flags("eval", workdir, fields))
    assert call.status == 0, call.stderr
    assert "bits/dim" in call.stdout
    return workdir


def results(workdir, name=str(STEPS)):
    return without_seconds(json.loads((workdir / "eval" / f"{name}.json").read_text()))


def without_seconds(tree):
    """What two evaluations alike have in common."""
    if not isinstance(tree, dict):
        return tree
    assert tree.get("seconds", 0) >= 0
    return {key: without_seconds(value) for key, value in tree.items() if key != "seconds"}


def evaluate(fields, denoiser, folder):
    """The results of a denoiser here, on four devices and with every shape checked."""
    experiment = build(configuration(fields))
    checkpoint = Checkpoint(step=STEPS, denoiser=denoiser)
    module.evaluate(experiment, checkpoint, Workdir(folder), (PIXELS,))
    return json.loads((folder / "eval" / f"{STEPS}.json").read_text())


def evaluate_run(workdir, fields):
    """--mode=eval in this process, also on four devices."""
    run_lib.evaluate(build(configuration(fields)), Workdir(workdir))


def close(a, b, tolerance):
    """Equal but for floats, which may differ by `tolerance`, relatively."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[k], b[k], tolerance) for k in a)
    return a == pytest.approx(b, rel=tolerance) if isinstance(a, float) else a == b


@pytest.mark.slow
def test_finished_evaluation_is_not_repeated(evaluated, fields):
    files = sorted((evaluated / "eval").iterdir())
    assert [file.name for file in files] == [f"{STEPS}{end}" for end in (".json", ".npz", ".png")]
    before = [(file.stat().st_mtime_ns, file.read_bytes()) for file in files]
    call = run(*flags("eval", evaluated, fields))
    assert call.status == 0
    assert f"{files[0]} is finished; not repeated" in call.stdout
    assert "bits/dim" in call.stdout
    assert [(file.stat().st_mtime_ns, file.read_bytes()) for file in files] == before


@pytest.mark.slow
def test_evaluation_killed_in_each_metric_ends_with_the_same_numbers(
    tmp_path, trained, evaluated, fields
):
    workdir = shutil.copytree(trained, tmp_path / "run")
    partial = workdir / "eval" / f"{STEPS}.partial"
    done = {}
    for metric in ("loss", "bits-per-dim-2", "samples-1"):
        running = start(*flags("eval", workdir, fields))
        running.until(lambda metric=metric: any(partial.glob(f"{metric}-*.npz")))
        running.send(signal.SIGKILL)
        assert running.wait().status == -signal.SIGKILL
        # Without the file that was being written, whose name begins with a dot.
        now = {file.name: file.stat().st_mtime_ns for file in partial.glob("[!.]*.npz")}
        assert done.items() < now.items(), "what was done is not done again"
        done = now
    assert not (workdir / "eval" / f"{STEPS}.json").exists()
    call = run(*flags("eval", workdir, fields))
    assert call.status == 0, call.stderr
    assert results(workdir) == results(evaluated)
    assert not partial.exists()


@pytest.mark.slow
def test_another_protocol_keeps_the_old_results(evaluated, fields, tmp_path):
    workdir = shutil.copytree(evaluated, tmp_path / "run")
    old = results(workdir)
    changed = fields | {"eval.metrics": ("loss", "frechet"), "eval.seed": 1}
    call = run(*flags("eval", workdir, changed))
    assert call.status == 0, call.stderr
    assert f"keeping it as {STEPS}.1.json" in call.stdout
    assert results(workdir, f"{STEPS}.1") == old
    new = results(workdir)
    assert new["protocol"]["eval"]["seed"] == 1
    assert "bits_per_dim" not in new
    assert new["loss"]["mean"] != old["loss"]["mean"]
    assert new["frechet"] == old["frechet"], "the seed of sampling is another"


@pytest.mark.slow
def test_chosen_checkpoints_are_evaluated_each(trained, fields, tmp_path):
    workdir = shutil.copytree(trained, tmp_path / "run")
    few = fields | {"eval.metrics": ("loss",)}
    evaluate_run(workdir, few | {"eval.checkpoints": (15, 30)})
    first, second = results(workdir, "15"), results(workdir, "30")
    assert (first["step"], second["step"]) == (15, 30)
    assert first["loss"] != second["loss"]
    missing = few | {"eval.checkpoints": (15, 7), "eval.seed": 5}
    with pytest.raises(CheckpointError, match="7 cannot be loaded: there is no such checkpoint"):
        evaluate_run(workdir, missing)
    assert results(workdir, "15") == first, "nothing was computed before the error"


@pytest.mark.slow
def test_evaluation_of_other_images_or_another_network_is_another(
    evaluated, fields, tmp_path, capsys
):
    """Though name, step and configuration are the same."""
    workdir = shutil.copytree(evaluated, tmp_path / "run")
    images = write_images(tmp_path / "images.npz", 32, TEST_IMAGES, seed=1)
    few = fields | {"eval.metrics": ("loss",), "data.name": str(images)}
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["name"] = str(images)
    (workdir / "config.json").write_text(json.dumps(config))

    def printed():
        evaluate_run(workdir, few)
        return capsys.readouterr().out

    assert "keeping it as" in printed()
    first = results(workdir)
    assert "finished; not repeated" in printed()
    write_images(images, 32, TEST_IMAGES, seed=2)
    assert "keeping it as" in printed()
    assert results(workdir)["loss"] != first["loss"]
    (workdir / "eval" / f"{STEPS}.json").write_text("{")
    assert "keeping it as" in printed(), "a damaged result is put aside"


@pytest.fixture(scope="module")
def model():
    """A process, and a Gaussian near the random images, whose exact score is the network."""
    sde, dims = VPSDE(), 64
    return sde, gaussian(np.full(dims, 0.1), 0.4 * np.eye(dims))


@pytest.fixture(scope="module")
def numbers(model, fields, tmp_path_factory):
    sde, target = model
    denoiser = target.denoiser(sde)
    sharp = fields | {"likelihood.rtol": 1e-5, "likelihood.atol": 1e-5, "likelihood.trace": "exact"}
    return sharp, denoiser, evaluate(sharp, denoiser, tmp_path_factory.mktemp("numbers"))


@pytest.mark.slow
def test_bits_per_dim_is_the_density_of_the_dequantized_images(model, numbers):
    """By hand: -log2 of the Gaussian's mass in the cell of width 2 / 256 around each number."""
    sde, target = model
    sharp, _, found = numbers
    experiment = build(configuration(sharp))
    marginal = target.marginal(sde, 1e-5)
    bits = []
    for draw in range(2):
        x = batch_of_test_images(
            experiment.data.splits.test,
            np.arange(TEST_IMAGES),
            seed=0,
            draw=draw,
            quantizer=experiment.data.quantizer,
            scaler=experiment.data.scaler,
        )
        log_mass = marginal.log_prob(x.reshape(TEST_IMAGES, -1)) + 64 * math.log(2 / 256)
        bits.append(-log_mass / (64 * math.log(2)))
    bits = np.array(bits)
    assert found["bits_per_dim"]["mean"] == pytest.approx(bits.mean(), abs=1e-3)
    error = bits.mean(axis=0).std(ddof=1) / math.sqrt(TEST_IMAGES)
    assert found["bits_per_dim"]["over_images"] == pytest.approx(error, rel=1e-2)
    assert found["bits_per_dim"]["images"] == TEST_IMAGES
    assert found["bits_per_dim"]["draws"] == 2
    assert found["bits_per_dim"]["over_probes"] == 0, "the trace is exact"
    together = -np.log2((2.0 ** (-64 * bits)).mean(axis=0)).mean() / 64
    assert found["bits_per_dim"]["importance_weighted"] == pytest.approx(together, abs=1e-3)
    assert abs(found["bits_per_dim"]["solver_error"]["mean"]) < 1e-4


@pytest.mark.slow
def test_batches_do_not_change_the_numbers(numbers, tmp_path):
    """To 1e-4, the order of float32 sums; batches of 6 are padded to 8 on four devices."""
    sharp, denoiser, reference = numbers
    found = evaluate(sharp | {"eval.batch_size": 8}, denoiser, tmp_path)
    for metric in ("loss", "frechet"):
        assert close(found[metric], reference[metric], 1e-4), metric
    for name in ("mean", "over_images", "over_draws"):
        expected = reference["bits_per_dim"][name]
        assert found["bits_per_dim"][name] == pytest.approx(expected, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_loss_is_the_objective_on_the_test_images(model, numbers):
    """Within five standard errors of a plain average over many times and noises."""
    sharp, denoiser, found = numbers
    experiment = build(configuration(sharp))
    images = experiment.data.quantizer.normalize(experiment.data.splits.test)
    x = jnp.asarray(experiment.data.scaler.forward(images))
    keys = jax.random.split(jax.random.key(7), 200)
    losses = jax.jit(jax.vmap(lambda key: experiment.trainer.loss(key, denoiser, x).values))(keys)
    spread = float(np.std(losses)) / math.sqrt(2 * TEST_IMAGES)
    assert found["loss"]["mean"] == pytest.approx(float(losses.mean()), abs=5 * spread + 1e-2)


@pytest.mark.slow
def test_one_device_and_four_agree(evaluated, trained, fields, tmp_path):
    """To 1e-5, the order of float32 sums."""
    workdir = shutil.copytree(trained, tmp_path / "run")
    few = fields | {"eval.metrics": ("loss",)}
    assert run(*flags("eval", workdir, few), devices=4).status == 0
    assert close(results(workdir)["loss"], results(evaluated)["loss"], 1e-5)


EVERY = TINY | {
    "training.steps": 2,
    "classifier.features": 8,
    "classifier.channel_multipliers": (1,),
    "classifier.head_width": 8,
    "classifier.steps": 3,
    "discrete_bound.steps": 3,
    "continuous_bound.num_times": 2,
    "eval.batch_size": 100,
    "eval.dequantizations": 2,
    "eval.samples": 30,
    "eval.features": ("pixels", "classifier"),
    "eval.metrics": (
        "continuous_bound",
        "discrete_bound",
        "frechet",
        "kid",
        "precision_recall",
        "inception_score",
    ),
}


@pytest.mark.slow
def test_classifier_is_trained_and_every_metric_computed(tmp_path):
    workdir = tmp_path / "run"
    assert run(*flags("train", workdir, EVERY)).status == 0
    early = run(*flags("eval", workdir, EVERY))
    assert early.status == 1
    assert "config.eval.features='classifier', but there is none" in early.stderr
    assert "--mode=train_classifier" in early.stderr
    trained = run(*flags("train_classifier", workdir, EVERY))
    assert trained.status == 0, trained.stderr
    again = run(*flags("train_classifier", workdir, EVERY))
    assert "is trained: step 3 of 3" in again.stdout
    other = run(*flags("train_classifier", workdir, EVERY | {"classifier.features": 16}))
    assert other.status == 1
    assert "config.classifier.features was 8, is 16" in other.stderr
    # How long it was trained does not matter to who uses it.
    call = run(*flags("eval", workdir, EVERY | {"classifier.steps": 600}))
    assert call.status == 0, call.stderr
    found = results(workdir, "2")
    for name in ("frechet", "kid", "precision_recall"):
        assert found[name].keys() == {"pixels", "classifier"}, name
    assert found["inception_score"].keys() == {"classifier"}
    score = found["inception_score"]["classifier"]["mean"]
    assert 1 <= score <= 10
    bound = found["discrete_bound"]
    assert bound["mean"] == pytest.approx(bound["L_T"] + bound["L_t"] + bound["L_0"], rel=1e-5)
    continuous = found["continuous_bound"]
    parts = (continuous[name] for name in ("prior", "diffusion", "decoder"))
    assert continuous["mean"] == pytest.approx(sum(parts), rel=1e-5)
    with np.load(workdir / "eval" / "2.npz") as arrays:
        assert arrays["discrete_bound"].shape == (297,)
        assert arrays["continuous_bound"].shape == (2, 297)
        assert arrays["discrete_bound"].mean() == pytest.approx(bound["mean"], rel=1e-6)
    pixels = {"eval.features": ("pixels",), "eval.metrics": ("frechet",)}
    stats = run(*flags("stats", workdir, EVERY | pixels))
    assert stats.status == 0, stats.stderr
    assert "statistics of 1500 images, 64 pixels" in stats.stdout
    # Samples guided by the classifier are others, and their protocol says by which it was.
    guided = EVERY | pixels | {"guidance.name": "classifier", "guidance.scale": 9.0}
    call = run(*flags("eval", workdir, guided))
    assert call.status == 0, call.stderr
    again = results(workdir, "2")
    assert len(again["protocol"]["needs"]["classifier"]) == 16
    assert again["frechet"]["pixels"] != found["frechet"]["pixels"]
    call = run(*flags("train", workdir, guided | {"training.sample_every": 1}))
    assert call.status == 1
    assert "config.guidance.name=classifier needs a trained classifier" in call.stderr
