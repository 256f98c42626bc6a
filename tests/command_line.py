"""main.py in processes of its own: started, watched, stopped, and what they left behind.

An interpreter needs three seconds to import JAX and its libraries. So most calls are forked from a
server that has imported them and started nothing; `run_fresh` starts an interpreter as people do.
Either way there is one CPU device, or as many as asked for, no type checking, no strict mode; XLA
is told to compile quickly, as in conftest.py.
"""

import atexit
import functools
import gc
import json
import multiprocessing
import os
import re
import resource
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from multiprocessing import forkserver
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
from fake_buckets import fake_buckets
from xla_flags import trace_fast

from configs import vp_digits

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "configs/vp_digits.py"

# Runs on 8x8 digits; every step is logged, so that every step can be compared.
_RUN = {
    "optim.warmup": 2,
    "training.batch_size": 16,
    "training.steps": 30,
    "training.log_every": 1,
    "training.checkpoint_every": 10,
    "training.sample_every": 0,
    "diagnostics.every": 0,
    "sampling.name": "pc",
    "sampling.steps": 4,
    "eval.batch_size": 4,
    "eval.error_budget_images": 4,  # a batch, so that they run the program of the others
}
# The smallest U-Net.
UNET = _RUN | {
    "model.features": 8,
    "model.channel_multipliers": (1,),
    "model.blocks_per_resolution": 1,
    "model.attention_resolutions": (),
}
# The smallest network, for what is no matter of the network: it trains in a third of the CPU time.
# Of a constant rate, the step does not know the last step, so runs of any length share a program.
TINY = _RUN | {
    "model.name": "mlp",
    "model.features": 8,
    "model.depth": 1,
    "optim.schedule": "constant",
}

# What processes import before they are forked; none of it starts a thread of JAX.
_PRELOADED = [
    *("run_lib", "diffrax", "scipy.special", "orbax.checkpoint", "tensorboardX", "PIL.Image"),
]


class Call(NamedTuple):
    """The end of a process: its exit status, negative for a signal, and what it printed."""

    status: int
    stdout: str
    stderr: str


class Running:
    """A process of main.py that may still run."""

    def __init__(self, process, folder):
        self.process, self.folder = process, Path(folder)

    def send(self, number):
        """Send a signal."""
        os.kill(self.process.pid, number)

    def until(self, happened, seconds=300):
        """Wait until `happened()`; fail if the process ends before, or takes too long."""
        deadline = time.monotonic() + seconds
        while not happened():
            assert self.process.is_alive(), f"ended too early:\n{self.wait().stderr}"
            assert time.monotonic() < deadline, f"nothing happened in {seconds} s"
            time.sleep(0.001)

    def has_said(self, text, stream="stderr"):
        """Whether `text` is on standard error, or output, by now."""
        file = self.folder / stream
        return file.exists() and text in file.read_text()

    def wait(self, seconds=300):
        """The end of the process."""
        self.process.join(seconds)
        late = self.process.is_alive()
        if late:
            self.process.kill()  # or the suite would wait for it at its own end
            self.process.join()
        stdout, stderr = ((self.folder / name).read_text() for name in ("stdout", "stderr"))
        shutil.rmtree(self.folder)
        assert not late, f"still running after {seconds} s:\n{stdout}\n{stderr}"
        return Call(self.process.exitcode, stdout, stderr)


def start(*arguments, devices=1, file_limit=None, buckets=None, home=None, variables=None):
    """Start main.py; with `file_limit` no file of its can grow beyond so many bytes.

    With `buckets`, gs://NAME is the folder NAME in there; see fake_buckets.py. With `home`, that is
    the folder ~. `variables` are set in its environment.
    """
    folder = tempfile.mkdtemp(dir=_scratch())
    environment = _environment(devices) | ({} if home is None else {"HOME": str(home)})
    environment |= variables or {}
    given = (arguments, environment, folder, file_limit, buckets)
    process = _server().Process(target=_main, args=given)
    process.start()
    return Running(process, folder)


def start_hosts(*arguments, hosts=2, devices=1, more=(), homes=None):
    """Start main.py on several hosts; `more` are flags of the last one alone.

    With `homes`, each has its own folder ~.
    """
    coordinator = f"--coordinator=127.0.0.1:{free_port()}"
    ours = [*arguments, coordinator, f"--num_processes={hosts}", "--hosts_timeout=60"]
    return [
        start(
            *ours,
            f"--process_id={i}",
            *(more if i == hosts - 1 else ()),
            devices=devices,
            home=homes and homes[i],
        )
        for i in range(hosts)
    ]


def run_hosts(*arguments, **options):
    """Run main.py on several hosts to their ends; see `start_hosts`."""
    return [each.wait() for each in start_hosts(*arguments, **options)]


def free_port():
    """A port of this machine that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def run(*arguments, devices=1, file_limit=None, buckets=None):
    """Run main.py to its end."""
    return start(*arguments, devices=devices, file_limit=file_limit, buckets=buckets).wait()


# Limits itself and becomes main.py: no code of ours runs between a fork and an exec.
_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def run_fresh(*arguments, devices=1, file_limit=None):
    """Run main.py in an interpreter of its own; see `start` for `file_limit`."""
    limited = [] if file_limit is None else ["-c", _LIMITED, str(file_limit)]
    done = subprocess.run(
        [sys.executable, *limited, "main.py", *arguments],
        cwd=ROOT,
        env=os.environ | _environment(devices),
        capture_output=True,
        text=True,
        check=False,
    )
    return Call(done.returncode, done.stdout, done.stderr)


def flags(mode, workdir, fields=TINY, config=CONFIG):
    """The command line for a mode, a working directory and fields that differ from `config`."""
    overrides = [f"--config.{name}={value}" for name, value in fields.items()]
    return [f"--config={config}", f"--mode={mode}", f"--workdir={workdir}", *overrides]


def samples_of(call):
    """The folder that --mode=sample has written."""
    assert call.status == 0, call.stderr
    return Path(re.search(r"^\d+ samples of step .*: (\S+)$", call.stdout, re.MULTILINE)[1])


def configuration(fields=TINY):
    """The same configuration here, to look into what a process has written."""
    config = vp_digits.get_config()
    config.update_from_flattened_dict(fields)
    return config


def snapshot(path):
    """Every file and folder below `path` with its content; None if there is no `path`."""
    if not path.is_dir():
        return path.read_bytes() if path.exists() else None
    return {
        str(file.relative_to(path)): None if file.is_dir() else file.read_bytes()
        for file in path.rglob("*")
    }


def assert_rejected(call, pattern):
    """One line on standard error that matches, and nothing else."""
    assert call.status not in (0, None), call
    assert "Traceback" not in call.stderr, call.stderr
    assert re.fullmatch(rf"error: .*{pattern}.*\n", call.stderr), call.stderr
    assert call.stdout == ""


def record(workdir):
    """The record without the one number that is no function of the configuration."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row.pop("images_per_sec") > 0
    return rows


def assert_one_error(call, pattern):
    """Failure in one line that says why, below the progress bar."""
    assert call.status == 1, call
    assert "Traceback" not in call.stderr, call.stderr
    lines = call.stderr.splitlines()
    said = [line for line in lines if not re.fullmatch(r"|[\w ]+: .*%\|.*", line)]
    assert len(said) == 1, call.stderr
    assert re.fullmatch(f"error: .*{pattern}.*", said[0]), said


def draw(workdir, count, *arguments, devices=1):
    """The images that --mode=sample draws."""
    call = run(*flags("sample", workdir), f"--num_samples={count}", *arguments, devices=devices)
    with np.load(samples_of(call) / "samples.npz") as file:
        assert file.files == ["samples", "arr_0"]
        np.testing.assert_array_equal(file["samples"], file["arr_0"])
        return file["samples"]


def write_images(path, count, test_count, *, size=8, channels=1, classes=0, seed=0):
    """An .npz of random images, of classes in turn; a data set of any size."""
    rng = np.random.default_rng(seed)

    def images(number):
        return rng.integers(0, 256, (number, size, size, channels), np.uint8)

    arrays = {"train": images(count), "test": images(test_count)}
    if classes:
        arrays |= {f"{name}_labels": np.arange(len(x)) % classes for name, x in arrays.items()}
    np.savez(path, **arrays)
    return path


@functools.cache
def _scratch():
    folder = tempfile.mkdtemp(prefix="scoresde-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _environment(devices):
    """A user's cache folder of its own, and the tests' compiled programs."""
    given = os.environ.get("XLA_FLAGS", "")
    return {
        "JAX_PLATFORMS": "cpu",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "OPENBLAS_NUM_THREADS": "1",  # a process with threads should not be forked
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": _scratch(),
        "XLA_FLAGS": f"{given} --xla_force_host_platform_device_count={devices}",
    }


@functools.cache
def _server():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with mock.patch.dict(os.environ, _environment(devices=1)):
        forkserver.ensure_running()
    return context


def _main(arguments, environment, folder, file_limit, buckets):
    """The life of a forked process."""
    gc.freeze()  # what the server has imported outlives this process
    trace_fast()
    os.chdir(ROOT)
    os.environ.update(environment)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        with open(Path(folder, name), "wb") as file:
            os.dup2(file.fileno(), descriptor)
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.argv = ["main.py", *arguments]
    with nullcontext() if buckets is None else fake_buckets(buckets):
        runpy.run_path("main.py", run_name="__main__")
