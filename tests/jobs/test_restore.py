"""What is loaded from runs: the bad model of autoguidance, a network in float16."""

import json
import shutil

import jax
import numpy as np
import pytest
from command_line import TINY, UNET, configuration, flags, run, samples_of

from errors import ConfigError
from experiment.build import build
from jobs.restore import load_checkpoint, load_model, mismatch
from jobs.shipped import read_model, write_model
from jobs.workdir import Workdir, run_and_step

FIELDS = TINY | {"sampling.name": "ddim", "sampling.variant": None}
SMALL = FIELDS | {"model.features": 4, "training.steps": 10}


@pytest.fixture(scope="module")
def runs(finished, tmp_path_factory):
    """Two runs: one with checkpoints at steps 10, 20 and 30, and a smaller one."""
    folder = tmp_path_factory.mktemp("runs")
    shutil.copytree(finished, folder / "good")
    done = run(*flags("train", folder / "bad", SMALL))
    assert done.status == 0, done.stderr
    return folder


def guided(run, **options):
    fields = {"name": "autoguidance", "run": str(run)} | options
    return {f"guidance.{name}": value for name, value in fields.items()}


def sampled(folder, fields):
    """The samples of a run from the command line, their protocol, and the line that is printed."""
    done = run(*flags("sample", folder, FIELDS | fields), "--num_samples=4")
    found = samples_of(done)
    with np.load(found / "samples.npz") as file:
        return file["samples"], json.loads((found / "protocol.json").read_text()), done.stdout


@pytest.mark.slow
def test_another_run_or_an_earlier_step_guides_a_run(runs, tmp_path):
    """At scale 1 samples are those without guidance, bit for bit; protocols tell runs apart."""
    good = shutil.copytree(runs / "good", tmp_path / "good")
    plain, _, said = sampled(good, {})
    assert "NFE 5:" in said
    same, protocol, _ = sampled(good, guided(runs / "bad", scale=1.0))
    np.testing.assert_array_equal(same, plain)
    assert protocol["needs"] == {}
    digests = set()
    for bad in (runs / "bad", ":10"):
        images, protocol, said = sampled(good, guided(bad, scale=3.0))
        assert (images != plain).any()
        assert "NFE 10:" in said
        digests.add(protocol["needs"]["bad_model"])
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("name", "other", "message"),
    [
        ("nowhere", {}, "there is no run in nowhere"),
        ("bad:7", {}, r"there is no such checkpoint\. Checkpoints on disk: 10"),
        (":30", {}, "is the step to guide; give an earlier one"),
        ("bad", {"sde.beta_max": 5.0}, r"VPSDE\(.*beta_max=20\.0\), and .*beta_max=5\.0\); give a"),
        ("bad", {"data.centered": False}, r"the range ImageScaler\(low=-1\.0.*\(low=0\.0.*; give"),
    ],
)
@pytest.mark.slow
def test_a_bad_model_that_does_not_suit_is_refused(runs, monkeypatch, name, other, message):
    """In one line, which starts with the field."""
    monkeypatch.chdir(runs)
    workdir = Workdir("good")
    monkeypatch.setattr(Workdir, "check", lambda *args, **options: [])
    experiment = build(configuration(FIELDS | other | guided(name)))
    with pytest.raises(
        ConfigError, match=rf"^config\.guidance\.run='{name}'.*({message})"
    ) as error:
        load_checkpoint(experiment, workdir)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_bad_model_has_the_same_classes_or_none():
    """And small images where the network has them."""
    adm = {"model.name": "adm", "model.head_width": 8}
    plain, ten, three, upsampler = (
        build(configuration(UNET | fields))
        for fields in (
            {},
            {"model.num_classes": 10},
            {"model.num_classes": 3},
            adm | {"model.upsampling": 2},
        )
    )
    assert mismatch(ten, ten) == mismatch(ten, plain) == ""
    for good, bad in ((ten, three), (plain, ten)):
        assert "has config.model.num_classes=" in mismatch(good, bad)
    assert "has config.model.upsampling 2, and the network to guide 1" in mismatch(plain, upsampler)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("runs/a", ("runs/a", None)),
        ("runs/a:30", ("runs/a", 30)),
        (":30", ("", 30)),
        ("a:b", ("a:b", None)),
    ],
)
def test_a_run_is_named_with_its_step_or_without(name, parts):
    assert run_and_step(name) == parts


@pytest.mark.slow
def test_a_network_is_kept_in_float16(runs, tmp_path):
    write_model(Workdir(runs / "good"), tmp_path)
    kept, trained = read_model(tmp_path), load_model(runs / "good")
    assert kept.checkpoint.step == trained.checkpoint.step == 30
    assert kept.experiment.config == trained.experiment.config

    def close(half, full):
        assert half.dtype == full.dtype
        np.testing.assert_allclose(half, full, rtol=2**-11, atol=1e-7)

    jax.tree.map(close, kept.denoiser.network.args, trained.denoiser.network.args)


@pytest.mark.slow
def test_a_run_that_is_older_than_a_section_of_the_configuration_loads(runs, tmp_path):
    run = shutil.copytree(runs / "good", tmp_path / "old")
    config = json.loads((run / "config.json").read_text())
    del config["coupling"]
    (run / "config.json").write_text(json.dumps(config))
    assert "coupling" in load_model(run).experiment.config
