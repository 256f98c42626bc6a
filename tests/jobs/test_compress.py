"""Compression by commands: images come back, and what does not fit is one line."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, configuration, flags, run

import scoresde as ss
from bounds.bits_back import ImageCodec
from bounds.discrete import DiscreteBoundOptions, discrete_bound
from errors import HostsError
from experiment.build import build
from jobs.compress import compress
from jobs.workdir import Workdir
from time_grids import Schedule
from training import hosts

FIELDS = TINY | {
    "training.steps": 4,
    "training.checkpoint_every": 2,
    "discrete_bound.steps": 5,
    "discrete_bound.t_min": 0.02,
    "discrete_bound.variance": "large",
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("compress") / "run"
    done = run(*flags("train", workdir, FIELDS))
    assert done.status == 0, done.stderr
    return workdir


@pytest.mark.slow
def test_images_come_back_from_a_file_and_others_are_refused(workdir):
    file, images = workdir / "code", workdir / "images.npz"
    compress = flags("compress", workdir, FIELDS)
    done = run(*compress, "--source=test:0-4", f"--target={file}", "--lanes=2")
    assert done.status == 0, done.stderr
    assert f"5 images in {file.stat().st_size:,} bytes" in done.stdout
    decompress = [*flags("decompress", workdir, FIELDS), f"--source={file}"]
    done = run(*decompress, f"--target={images}")
    assert done.status == 0, done.stderr
    assert "5 of 5 images" in done.stdout
    assert (workdir / "images.png").exists()

    # What was decompressed is compressed to the same bytes.
    again = run(*compress, f"--source={images}", f"--target={workdir / 'again'}", "--lanes=2")
    assert again.status == 0, again.stderr
    assert (workdir / "again").read_bytes() == file.read_bytes()

    other = flags("decompress", workdir, FIELDS | {"discrete_bound.steps": 6})
    done = run(*other, f"--source={file}", f"--target={workdir / 'b.npz'}")
    assert done.status == 1
    assert "another model; what differs: config.discrete_bound.steps" in done.stderr
    # The same configuration, with the parameters of an earlier step.
    done = run(*decompress, f"--target={workdir / 'b.npz'}", "--checkpoint=2")
    assert done.status == 1
    assert "another model; what differs: parameters. Give the run, --checkpoint" in done.stderr
    assert not (workdir / "b.npz").exists()
    np.savez(workdir / "gray.npz", samples=np.full((1, 8, 8, 1), 100, np.uint8))
    done = run(*compress, f"--source={workdir / 'gray.npz'}", f"--target={workdir / 'c'}")
    assert done.status == 1
    assert "has gray levels that the model lacks, which has 17" in done.stderr
    assert not (workdir / "c").exists()


@pytest.mark.slow
def test_hosts_with_other_images_are_refused_before_they_are_compressed(workdir, monkeypatch):
    class Other:
        """A channel to a host that has other images."""

        index, peers = 0, (1,)

        def send(self, value):
            pass

        def receive(self, peer):
            return {"place": place, "value": {"sha256_images": "another"}}

    place = "the images or the checkpoint"
    experiment, target = build(configuration(FIELDS)), workdir / "hosts"
    monkeypatch.setattr(hosts, "_channel", Other())
    monkeypatch.setattr(ImageCodec, "encode", lambda *given: pytest.fail("compressed"))
    with pytest.raises(HostsError, match=f"the hosts differ in {place}: .* host 1; start"):
        compress(experiment, Workdir(workdir), source=Path("test:0-2"), target=target)
    assert not target.exists()


@pytest.mark.slow
def test_all_bits_of_the_curve_but_the_last_are_those_of_the_bound(workdir):
    metrics = {"eval.metrics": "('discrete_bound', 'rate_distortion')", "eval.batch_size": 99}
    done = run(*flags("eval", workdir, FIELDS | metrics))
    assert done.status == 0, done.stderr
    assert "bits/dim to an error of 10 of 255" in done.stdout
    results = json.loads((workdir / "eval/4.json").read_text())
    bound, curve = results["discrete_bound"], results["rate_distortion"]
    assert curve["rate"][0] == pytest.approx(bound["L_T"], rel=1e-5)
    assert curve["rate"][-1] == pytest.approx(bound["mean"] - bound["L_0"], rel=1e-5)
    assert curve["rate"] == sorted(curve["rate"])
    assert 0 < curve["distortion"][-1] < curve["distortion"][0] < 255
    assert (workdir / "eval/4_rate_distortion.png").exists()


@pytest.mark.slow
def test_digits_take_the_bits_of_the_bound_with_the_network_that_comes_along():
    """Initial bits apart; the mean of two draws of the bound, on the same images.

    Initial bits are counted in whole words of 32 bits, so that some bits of each lane are missing.
    """
    model, count = ss.load("digits"), 40
    data = model.experiment.data
    coder = ImageCodec(
        denoiser=model.denoiser,
        times=Schedule(grid="log_snr", steps=20, t_min=0.02).of(model.denoiser.sde),
        pixel_levels=data.pixel_levels,
        options=DiscreteBoundOptions(decoder="tweedie"),
        shape=data.shape,
        lanes=2,
    )
    levels = data.quantizer.quantize(data.in_unit_range(np.asarray(data.splits.test[:count])))
    codes = coder.encode(levels)
    bits = sum(32 * len(code.words) - code.random_bits for code in codes) / levels.size
    x0 = jnp.tile(data.noiseless(data.splits.test, jnp.arange(count)), (2, 1, 1, 1))
    grid = {"times": coder.times, "pixel_levels": coder.pixel_levels, "options": coder.options}
    nats = float(discrete_bound(jax.random.key(0), model.denoiser, x0, **grid).total.mean())
    assert bits == pytest.approx(nats / math.log(2) / levels[0].size, rel=0.02)
