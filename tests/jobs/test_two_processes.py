"""Two processes in one folder: the second writer is refused, readers are welcome."""

import re
import shutil
import signal

import pytest
from command_line import TINY, flags, run, start

LONG = TINY | {"training.steps": 100_000, "training.checkpoint_every": 5}


def refused(call, folder):
    """Whether a command ended with one line that names the process in the folder."""
    found = re.fullmatch(
        r"error: (\S+) is in use by process (\d+) on .*Wait until it ends, or stop it\n",
        call.stderr[call.stderr.rfind("error: ") :],
    )
    return call.status == 1 and "Traceback" not in call.stderr and found[1] == str(folder)


@pytest.mark.slow
def test_second_training_is_refused_and_samples_may_be_drawn(tmp_path):
    workdir = tmp_path / "run"
    running = start(*flags("train", workdir, LONG))
    running.until(lambda: any((workdir / "checkpoints").glob("[0-9]")))
    assert refused(run(*flags("train", workdir, LONG)), workdir)
    call = run(*flags("sample", workdir, LONG | {"sampling.steps": 2}), "--num_samples=2")
    assert call.status == 0, call.stderr
    running.send(signal.SIGTERM)
    assert running.wait().status == 128 + signal.SIGTERM, "the first goes on undisturbed"


@pytest.mark.slow
def test_second_evaluation_of_a_checkpoint_is_refused(finished, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "run")
    fields = TINY | {"eval.metrics": "('loss',)", "eval.loss_repeats": 2000}
    running = start(*flags("eval", workdir, fields))
    running.until(lambda: (workdir / "eval" / ".30.lock").exists())
    assert refused(run(*flags("eval", workdir, fields)), workdir / "eval")
    running.send(signal.SIGKILL)
    running.wait()
    call = run(*flags("eval", workdir, fields | {"eval.loss_repeats": 1}))
    assert call.status == 0, call.stderr
    assert not (workdir / "eval" / ".30.lock").exists()
