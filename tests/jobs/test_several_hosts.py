"""Two processes as two hosts: the numbers of one process with two devices, whatever happens."""

import json
import re
import shutil
import signal
from functools import partial

import jax
import numpy as np
import pytest
from command_line import (
    TINY,
    assert_one_error,
    configuration,
    flags,
    free_port,
    run,
    run_hosts,
    samples_of,
    start,
    start_hosts,
    write_images,
)

from experiment.build import build
from numerics.arrays import digest
from training.checkpoints import Checkpoints

# Few images, so that one batch is evaluated; one shape for all programs. Each host holds half the
# parameters.
FIELDS = TINY | {
    "parallel.shard": "params",
    "parallel.min_size": 1,
    "training.steps": 120,
    "training.checkpoint_every": 10,
    "eval.batch_size": 16,
    "eval.samples": 16,
    "eval.sampling_seeds": 1,
    "eval.dequantizations": 1,
    "likelihood.rtol": 1e-2,
    "likelihood.atol": 1e-2,
    "eval.metrics": ("loss", "bits_per_dim", "frechet", "kid"),
    "sampling.steps": 2,
}
OTHER_DATA = r"the data: config\.data is '\w+' on host 0, '\w+' on host 1"


@pytest.fixture(scope="module")
def fields(tmp_path_factory):
    images = write_images(tmp_path_factory.mktemp("images") / "images.npz", 40, 16)
    return FIELDS | {"data.name": str(images)}


@pytest.fixture(scope="module")
def alone(fields, tmp_path_factory):
    """A run of one process with two devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    call = run(*flags("train", workdir, fields), devices=2)
    assert call.status == 0, call.stderr
    return workdir


def state(workdir, fields):
    """The last training state of a run, in its leaves."""
    like = build(configuration(fields)).trainer.abstract_state()
    restored = Checkpoints(workdir / "checkpoints").restore(like)
    assert restored.step == 120
    return [np.asarray(leaf) for leaf in jax.tree.leaves(restored.state)]


def log(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) | {"images_per_sec": 0} for line in lines]


def names(workdir):
    """The files of a run, without those of TensorBoard and the parts of checkpoints."""
    files = (file.relative_to(workdir) for file in workdir.rglob("*") if file.is_file())
    kept = [file for file in files if file.parts[0] not in ("tensorboard", "checkpoints")]
    return sorted([*map(str, kept), *(path.name for path in workdir.glob("checkpoints/*"))])


def has_steps(workdir, count):
    file = workdir / "metrics.jsonl"
    return file.exists() and file.read_text().count("\n") >= count


@pytest.mark.slow
def test_killed_and_preempted_hosts_end_together_and_their_run_ends_as_that_of_one_process(
    fields, alone, tmp_path
):
    workdir = tmp_path / "run"
    command = flags("train", workdir, fields)
    for killed, steps in (((0, 1), 3), ((0,), 14), ((1,), 25)):
        hosts = start_hosts(*command)
        hosts[0].until(lambda steps=steps: has_steps(workdir, steps))
        for number in killed:
            hosts[number].send(signal.SIGKILL)
        calls = [host.wait() for host in hosts]
        expected = [-signal.SIGKILL if number in killed else 1 for number in (0, 1)]
        assert [call.status for call in calls] == expected
        said = f"error: host {killed[0]} was killed or cut off; run the same command"
        assert len(killed) == 2 or said in calls[1 - killed[0]].stderr

    hosts = start_hosts(*command)
    hosts[0].until(lambda: has_steps(workdir, 60))
    hosts[1].send(signal.SIGTERM)
    calls = [host.wait() for host in hosts]
    assert [call.status for call in calls] == [128 + signal.SIGTERM] * 2, calls
    resumed, stopped = re.search(
        r"at step (\d+)\nstopped by SIGTERM at step (\d+), saved", calls[0].stdout
    ).groups()
    assert int(resumed) in (10, 20, 30)
    assert (workdir / "checkpoints" / stopped).is_dir()
    assert not calls[1].stdout, "the first host prints"

    call = run(*command, devices=2)
    assert call.status == 0, call.stderr
    assert f"continuing from the checkpoint at step {stopped}" in call.stdout
    assert digest(state(workdir, fields)) == digest(state(alone, fields))
    assert log(workdir) == log(alone)
    assert names(workdir) == names(alone), "every file is written once, and nothing is left"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "changes", "more", "problem"),
    [
        ("train", {}, ["--config.optim.lr=0.5"], r"optim\.lr is 0\.0\S+ on host 0, 0\.5 on host 1"),
        (
            "train",
            {},
            ["--config.data.name=other.npz"],
            r"data\.name is '~\S+' on host 0, 'other\.",
        ),
        (
            "train",
            {},
            ["--config.optim.rate=1"],
            r"host 1 has failed: --config\.optim\.rate is not",
        ),
        ("train", {}, ["--config=configs/lost.py"], r"host 1 has failed: .*configs/lost\.py"),
        ("train", {}, ["--mode=trian"], r"host 1 has failed: .*trian"),
        ("train", {}, ["--num_samples=4"], r"host 1 has failed: --num_samples is only valid with"),
        ("train", {}, [], OTHER_DATA),
        ("stats", {}, [], OTHER_DATA),
        ("moments", {}, [], OTHER_DATA),
        ("train", {"training.batch_size": 15}, [], r"batch_size=15 does not divide over 2 .*14 or"),
    ],
    ids=[
        "configuration",
        "path of the data",
        "field",
        "file",
        "mode",
        "flag",
        "data",
        "statistics",
        "moments",
        "batch",
    ],
)
def test_hosts_that_do_not_fit_together_end_with_one_line(tmp_path, mode, changes, more, problem):
    workdir, homes = tmp_path / "run", [tmp_path / "first", tmp_path / "second"]
    for seed, home in enumerate(homes):
        home.mkdir()
        write_images(home / "images.npz", 40, 16, seed=seed)
    command = flags(mode, workdir, FIELDS | {"data.name": "~/images.npz"} | changes)
    first, second = run_hosts(*command, more=more, homes=homes)
    assert_one_error(first, problem)
    assert second.status == 1
    if problem.startswith("host 1"):
        assert_one_error(second, problem.removeprefix("host 1 has failed: "))
    assert not workdir.exists()


@pytest.mark.slow
def test_one_wrong_flag_of_all_hosts_is_one_line_of_each(tmp_path):
    """They fail at once, so each may hear of the others while it ends."""
    command = flags("train", tmp_path / "run", {"optim.rate": 1})
    for _ in range(5):
        for host in run_hosts(*command):
            assert_one_error(host, r"--config\.optim\.rate is not a field")


@pytest.mark.slow
def test_samples_and_results_of_two_hosts_are_those_of_one_process(fields, alone, tmp_path):
    workdir = shutil.copytree(alone, tmp_path / "run")
    sample, evaluate = (partial(flags, mode, fields=fields) for mode in ("sample", "eval"))
    calls = run_hosts(*sample(workdir), "--num_samples=16")
    ours, theirs = (
        samples_of(calls[0]),
        samples_of(run(*sample(alone), "--num_samples=16", devices=2)),
    )
    assert ours.name == theirs.name, "the protocol is the same"
    with np.load(ours / "samples.npz") as first, np.load(theirs / "samples.npz") as second:
        np.testing.assert_array_equal(first["samples"], second["samples"])

    calls = [*run_hosts(*evaluate(workdir)), run(*evaluate(alone), devices=2)]
    assert [call.status for call in calls] == [0] * 3, calls
    first, second = (
        json.loads((folder / "eval" / "120.json").read_text()) for folder in (workdir, alone)
    )
    for results in (first, second):
        assert results.pop("seconds") > 0
        assert results["bits_per_dim"].pop("seconds") > 0
        assert {*FIELDS["eval.metrics"], "samples", "protocol"} <= results.keys()
    assert first == second
    first, second = (np.load(folder / "eval" / "120.npz") for folder in (workdir, alone))
    with first, second:
        assert first.files == second.files
        for name in first.files:
            np.testing.assert_array_equal(first[name], second[name])
    assert names(workdir) == names(alone)


def start_tasks(*arguments, tasks=(0, 1)):
    """Start main.py as some of the two tasks of a step of SLURM on one machine."""
    step = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": "2",
        "JAX_COORDINATOR_PORT": str(free_port()),
    }
    return [
        start(*arguments, variables=step | {"SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)})
        for i in tasks
    ]


@pytest.mark.slow
def test_tasks_of_a_cluster_meet(tmp_path):
    command = flags("check", tmp_path / "run", FIELDS | {"data.name": "digits"})
    first, second = [task.wait() for task in start_tasks(*command, "--hosts_timeout=60")]
    assert first.status == second.status == 0, (first, second)
    assert "2 host(s)" in first.stdout
    assert not second.stdout, "the first host prints"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (0, r"host 1 has not come within 1 s; .* \(this is host 0 of 2 .* 127\.0\.0\.1:\d+, as"),
        (1, r"the first host is not at 127\.0\.0\.1:\d+ .* \(this is host 1 of 2 .*, as the clu"),
    ],
)
def test_task_of_a_cluster_whose_other_does_not_start_ends_with_one_line(tmp_path, task, problem):
    command = flags("check", tmp_path / "run", FIELDS | {"data.name": "digits"})
    (alone,) = start_tasks(*command, "--hosts_timeout=1", tasks=(task,))
    assert_one_error(alone.wait(), problem)
