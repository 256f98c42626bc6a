"""Weights & Biases, with the real package, offline: nothing leaves the machine."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT

from errors import ConfigError
from training.metrics_log import MetricsLog

needs_wandb = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="pip install wandb"
)

# Logs two steps, as a run that is started twice in a folder, and lets no connection out.
SCRIPT = """
import socket, sys
from pathlib import Path
import numpy as np

connect = socket.socket.connect

def local(self, address):
    if isinstance(address, tuple) and address[0] not in ("127.0.0.1", "localhost", "::1"):
        raise AssertionError(f"connects to {address}")
    return connect(self, address)

socket.socket.connect = local
from training.metrics_log import MetricsLog
step = int(sys.argv[2])
log = MetricsLog(Path(sys.argv[1]), step=step, config={"optim": {"lr": 0.5}}, wandb="a-project")
log.write(step + 1, {"loss": 0.25, "levels": {"test": {"1.50": 0.75}}})
log.image(step + 1, "samples", np.zeros((4, 5, 1), np.uint8))
log.close()
"""


def train(folder, step):
    environment = os.environ | {
        "WANDB_MODE": "offline",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "WANDB_CACHE_DIR": str(folder / "cache"),
    }
    call = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(step)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert call.returncode == 0, call.stderr


def of_folder(folder):
    """The command lines of the processes that mention a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, UnicodeDecodeError):  # another user's, or gone
            command, environment = (
                (process / name).read_bytes().decode() for name in ("cmdline", "environ")
            )
            if str(folder) in command + environment:
                found.append(command.replace("\0", " "))
    return found


@needs_wandb
@pytest.mark.slow
def test_offline_run_continues_as_itself_and_leaves_no_process(tmp_path):
    train(tmp_path, 0)
    name = (tmp_path / "wandb/run_id").read_text().strip()
    train(tmp_path, 1)
    files = sorted(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert [file.stem for file in files] == [f"run-{name}"] * len(files)
    assert len({file.parent for file in files}) == len(files) >= 1
    content = b"".join(file.read_bytes() for file in files)
    assert all(word in content for word in (b"a-project", b"loss", b"levels/test/1.50", b"optim"))
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]
    assert not of_folder(tmp_path)


def test_missing_package_is_one_line(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"config\.logging\.wandb='p' needs .*pip install wandb"):
        MetricsLog(tmp_path, step=0, wandb="p")
    assert not list(tmp_path.iterdir()), "nothing is written before"


@needs_wandb
@pytest.mark.slow
def test_it_is_imported_only_if_it_is_asked_for(tmp_path):
    script = (
        "import sys; from pathlib import Path; from training.metrics_log import MetricsLog; "
        f"MetricsLog(Path({str(tmp_path)!r}), step=0).close(); sys.exit('wandb' in sys.modules)"
    )
    call = subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False)
    assert call.returncode == 0
