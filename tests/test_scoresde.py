"""The library: a trained run, loaded from anywhere, draws the samples that main.py writes."""

import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from command_line import ROOT, TINY, flags, run

import scoresde as ss
from errors import CheckpointError, WorkdirError

STEPS = TINY["training.steps"]


@pytest.fixture(scope="module")
def trained(finished, tmp_path_factory):
    workdir = shutil.copytree(finished, tmp_path_factory.mktemp("runs") / "trained")
    call = run(*flags("sample", workdir), "--num_samples=4")
    assert call.status == 0, call.stderr
    return workdir


def in_python(code, folder, *arguments):
    """Run code in an interpreter of its own, in another folder; return its standard output."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *code, *map(str, arguments)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


LOADED = """
import sys
import jax
import numpy as np
import scoresde as ss

model = ss.load(sys.argv[1])
drawn = model.experiment.sampler.draw(model.checkpoint, np.arange(4))
images = model.experiment.data.splits.test[:3]
x = model.from_data(model.experiment.data.as_samples(images))
found = ss.log_prob(jax.random.key(0), model.denoiser, x)
np.savez(sys.argv[2], samples=drawn.samples, nats=found.nats, x=x, images=model.to_data(x))
print(model.shape, model.checkpoint.step)
"""


@pytest.mark.slow
def test_loaded_model_draws_the_samples_of_the_command_line(trained, tmp_path):
    """From another folder, and with a relative path."""
    (tmp_path / "run").symlink_to(trained)
    printed = in_python(("-c", LOADED), tmp_path, "run", tmp_path / "found.npz")
    assert printed == f"(8, 8, 1) {STEPS}\n"
    (written,) = (trained / "samples").glob(f"{STEPS}-*/samples.npz")
    with np.load(written) as file:
        samples = file["samples"]
    with np.load(tmp_path / "found.npz") as found:
        np.testing.assert_array_equal(found["samples"], samples)
        assert found["nats"].shape == (3,)
        assert np.isfinite(found["nats"]).all()
        assert found["x"].min() >= -1
        assert found["x"].max() <= 1
        assert found["images"].dtype == np.uint8


@pytest.mark.slow
def test_loaded_model_is_that_of_the_step(trained):
    model = ss.load(trained, step=10)
    assert model.checkpoint.step == 10
    assert isinstance(model, ss.TrainedModel)
    assert isinstance(model.denoiser, ss.Denoiser)
    x = ss.sample(
        jax.random.key(0),
        model.denoiser,
        (4, *model.shape),
        solver=ss.UniPC(),
        schedule=ss.Schedule(steps=4),
    ).x
    assert model.to_data(x).shape == (4, 8, 8, 1)


@pytest.mark.slow
def test_run_or_checkpoint_that_is_missing_is_an_error(trained, tmp_path):
    with pytest.raises(
        WorkdirError, match=r"there is no run in .*; train or import it first, by --mode=train"
    ):
        ss.load(tmp_path / "none")
    with pytest.raises(CheckpointError, match="99"):
        ss.load(trained, step=99)


def test_names_of_the_library_are_there_and_sorted():
    assert [name for name in ss.__all__ if not hasattr(ss, name)] == []
    assert len(ss.__all__) == len(set(ss.__all__))


@pytest.mark.slow
def test_module_is_the_command_line(tmp_path):
    """`python -m scoresde` is main.py, from any folder."""
    printed = in_python(
        ("-m", "scoresde"), tmp_path, "--config=configs/vp_digits.py", "--mode=check"
    )
    assert "network evaluations per image" in printed
    # absl leaves with status 1 after --help.
    done = subprocess.run(
        [sys.executable, "-m", "scoresde", "--help"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "--workdir" in done.stdout
    assert "--mode" in done.stdout


def test_a_configuration_with_missing_sections_is_one_error(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        WorkdirError, match=r"config\.json does not describe a run: config\.\w+ is missing"
    ):
        ss.load(tmp_path)
