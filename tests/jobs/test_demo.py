"""The page that draws samples: what its server answers, and that a browser shows it."""

import io
import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager
from urllib.parse import urlencode

import jax
import numpy as np
import pytest
from command_line import CONFIG, ROOT, TINY, run
from PIL import Image

import scoresde as ss
from errors import ConfigError
from experiment.sampler import Checkpoint
from jobs import demo
from jobs.restore import TrainedModel

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")


def model_of(name=CONFIG, **fields):
    """An untrained model; `fields` are as in TINY, with __ for a dot."""
    config = ss.load_configuration(name)
    for path, value in fields.items():
        section, field = path.split("__")
        config[section][field] = value
    experiment = ss.build(config)
    params = experiment.trainer.init_state(jax.random.key(0)).ema_params
    checkpoint = Checkpoint(step=0, denoiser=experiment.model.denoiser(params))
    return TrainedModel.of(experiment, checkpoint)


@pytest.fixture(scope="module")
def conditional():
    small = {path.replace(".", "__"): value for path, value in TINY.items()}
    return model_of(f"{CONFIG}:conditional", **small)


@contextmanager
def served(model):
    """The address of a running server."""
    with demo.server(model, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def asked(address, content=None):
    """The status and the JSON that an address answers with."""
    data = None if content is None else json.dumps(content).encode()
    try:
        with urllib.request.urlopen(address, data) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def pixels(picture):
    """A picture of 6 x 6 images of 8 x 8 pixels, enlarged 5 times: (36, 8, 8)."""
    grid = np.asarray(Image.open(io.BytesIO(picture)))[::5, ::5]
    assert grid.shape == (53, 53)
    return np.array(
        [grid[9 * i : 9 * i + 8, 9 * j : 9 * j + 8] for i in range(6) for j in range(6)]
    )


def test_a_request_that_cannot_be_had_is_refused():
    for content, message in (
        (b"[1, 2]", "reload the page"),
        (b'{"solver": "UniPC"}', "reload the page"),
        (b"{", "Expecting"),
        (b'{"solver": "magic", "known": []}', "choose one of"),
        (b'{"solver": "UniPC", "steps": 0, "known": []}', r"must lie in \[1, 200\]"),
        (b'{"solver": "UniPC", "seed": -1, "known": []}', r"must lie in \[0, "),
        (b'{"solver": "UniPC", "known": [[1, 2]]}', "not enough values"),
    ):
        with pytest.raises(ValueError, match=message):
            demo.Request.read(content)


def test_a_model_of_points_is_refused():
    with pytest.raises(ConfigError, match="take a run on images"):
        demo.Demo(model_of("configs/vp_swiss_roll.py"))


def test_several_hosts_are_refused(conditional, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match=r"one host, but here are 2; .*--num_processes=1"):
        ss.serve(conditional)


@pytest.mark.slow
def test_a_server_answers_with_pictures_or_one_line(conditional):
    with served(conditional) as address:
        status, options = asked(f"{address}/options")
        assert status == 200
        assert (options["height"], options["width"], options["classes"]) == (8, 8, 10)
        assert set(options["solvers"]) == set(demo.OFFERED)
        request = {"solver": "DDIM", "steps": 3, "seed": 1, "label": 2, "known": []}
        status, found = asked(f"{address}/sample", request)
        assert (status, len(found["pictures"]), found["evaluations"]) == (200, 4, 4)
        status, found = asked(f"{address}/sample", request | {"label": 10})
        assert status == 400
        assert "label=10 must lie in [-1, 9]" in found["error"]
        status, found = asked(f"{address}/sample", request | {"known": [[8, 0, 255]]})
        assert "row=8 must lie in [0, 7]" in found["error"]
        assert asked(f"{address}/secrets")[0] == 404


@pytest.mark.slow
def test_known_pixels_stay_and_the_seed_decides_the_rest(conditional):
    page = demo.Demo(conditional)
    known = tuple((row, column, 255 * (row % 2)) for row in range(8) for column in range(4))
    request = {"solver": "UniPC", "steps": 10, "known": known}
    first, again, other = (
        page.draw(demo.Request(**request, seed=seed)).pictures for seed in (1, 1, 2)
    )
    assert first == again != other
    drawn = pixels(first[-1])
    wanted = np.broadcast_to(255.0 * (np.arange(8) % 2)[:, None], (36, 8, 4))
    np.testing.assert_allclose(drawn[:, :, :4], wanted, atol=16)  # a digit's gray level


@pytest.mark.slow
@pytest.mark.parametrize("solver", demo.OFFERED)
def test_every_solver_draws(conditional, solver):
    shown = demo.Demo(conditional).draw(demo.Request(solver=solver, steps=4))
    assert len(shown.pictures) == 5
    assert pixels(shown.pictures[-1]).std() > 0


def test_a_port_out_of_range_is_one_line(conditional):
    with pytest.raises(ConfigError, match=r"^--port=70000: .*; give another one, or 0"):
        demo.server(conditional, 70000)


@pytest.mark.slow
def test_a_taken_port_is_one_line(finished):
    with demo.server(ss.load(finished), 0) as server:
        tiny = [f"--config.{field}={value}" for field, value in TINY.items()]
        port = f"--port={server.server_port}"
        call = run(f"--config={CONFIG}", "--mode=demo", f"--workdir={finished}", *tiny, port)
    assert call.status != 0
    assert f"error: {port}: Address already in use; give another one, or 0" in call.stderr


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_a_browser_draws_samples_without_errors(conditional, tmp_path):
    known = ";".join(f"{row},3,255" for row in range(8))
    folder = f"--user-data-dir={tmp_path}"
    request = urlencode({"solver": "DDIM", "steps": 3, "label": 4, "known": known})
    flags = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", folder]
    flags += ["--enable-logging=stderr", "--virtual-time-budget=60000", "--dump-dom"]
    with served(conditional) as address:
        command = [*flags, f"{address}/#{request}"]
        call = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert 'data-state="done"' in call.stdout, call.stderr
    assert "4 network evaluations" in call.stdout or "8 network evaluations" in call.stdout
    assert re.search(r'<img id="picture"[^>]*src="data:image/png;base64,', call.stdout)
    assert "CONSOLE" not in call.stderr


def test_the_page_loads_nothing_from_elsewhere():
    assert not re.search(r"https?://", (ROOT / "jobs" / "demo.html").read_text())
