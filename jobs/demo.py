"""A page in the browser that draws samples of a trained network as they come out of the noise.

    GET  /           the page, demo.html
    GET  /options    what the page offers: solvers, classes, the size of an image
    POST /sample     a `Request` as JSON; answered by pictures of the reverse process, from noise on

The server listens on this machine alone.
"""

import base64
import dataclasses
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from denoising import Denoiser
from errors import ConfigError, ScoreSDEError, require_choice, require_in
from experiment.images import as_images
from experiment.sampler import FixedSteps
from files.pictures import image_grid, png_bytes
from guidance.operators import inpainting
from guidance.projection import Projection
from jobs.restore import TrainedModel
from sampling import Solver, sample
from solvers.ddim import DDIM
from solvers.dpm_solver import DPMSolver
from solvers.heun import Heun
from solvers.predictor_corrector import (
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
)
from solvers.unipc import UniPC
from time_grids import Schedule

PAGE = Path(__file__).with_name("demo.html")
# A selection, under the names that visitors see.
OFFERED: dict[str, Solver] = {
    "UniPC": UniPC(),
    "DPM-Solver++": DPMSolver(),
    "DDIM": DDIM(),
    "DDIM with fresh noise": DDIM(eta=1.0),
    "Heun": Heun(final_euler=False),
    "Euler-Maruyama": PredictorCorrector(predictor=EulerMaruyama()),
    "Predictor-Corrector": PredictorCorrector(predictor=ReverseDiffusion(), corrector=Langevin()),
}
COUNT = 36  # images
FRAMES = 30  # pictures of the reverse process, at most
MOST_STEPS = 200


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a visitor of the page asks for.

    Args:
        solver: a name in OFFERED.
        steps: number of steps, 1 to 200.
        seed: seed of the noise.
        label: class of the images; -1 for all classes in turn.
        known: drawn pixels, each a row, a column and a gray level 0..255, which all images have.

    Raises:
        ValueError: for a name that is unknown, or a number out of range.
    """

    solver: str = "UniPC"
    steps: int = 20
    seed: int = 0
    label: int = -1
    known: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        require_choice("solver", self.solver, OFFERED)
        require_in("steps", self.steps, f"[1, {MOST_STEPS}]")
        require_in("seed", self.seed, "[0, 2147483647]")

    @classmethod
    def read(cls, text: bytes) -> "Request":
        """Read a request from JSON.

        Raises:
            ValueError: if it is none.
        """
        try:
            values = json.loads(text)
            names = ("steps", "seed", "label")
            numbers = {name: int(values[name]) for name in names if name in values}
            known = tuple((int(row), int(column), int(v)) for row, column, v in values["known"])
            return cls(solver=str(values["solver"]), known=known, **numbers)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"this is no request of the page: {error!r}; reload the page"
            ) from error


class Shown(NamedTuple):
    """PNGs of the images on their way from noise, and network evaluations per image."""

    pictures: list[bytes]
    evaluations: int


class Demo:
    """Draws what visitors want, one after the other.

    Args:
        model: a network of images.

    Raises:
        ConfigError: for points or series, and for a network that needs an image beside x.
    """

    def __init__(self, model: TrainedModel) -> None:
        self.images = as_images(model.experiment.data, "--mode=demo", "take a run on images")
        model.experiment.model.require_no_image("--mode=demo")
        self.model = model
        self.classes: int = model.experiment.model.num_classes
        solve = model.experiment.sampler.solve
        schedule = solve.schedule if isinstance(solve, FixedSteps) else Schedule()
        self._schedule = dataclasses.replace(schedule, times=(), final_step="denoise")
        self._one_at_a_time = threading.Lock()

    @property
    def options(self) -> dict[str, Any]:
        """What the page offers."""
        height, width, _ = self.model.shape
        sizes = {"height": height, "width": width, "classes": self.classes}
        return sizes | {"solvers": list(OFFERED), "most_steps": MOST_STEPS}

    def draw(self, request: Request) -> Shown:
        """Draw images.

        Raises:
            ValueError: for a class or a pixel that is not there, or a solver that does not suit the
                process.
            SamplingError: if an image becomes NaN or infinite.
        """
        denoiser, projection = self._denoiser(request), self._projection(request)
        with self._one_at_a_time:
            found = sample(
                jax.random.key(request.seed),
                denoiser,
                (COUNT, *self.model.shape),
                solver=OFFERED[request.solver],
                schedule=self._schedule,
                steps=request.steps,
                projection=projection,
                frames=min(FRAMES, request.steps + 1),
            )
        assert found.trajectory is not None
        pictures = [png_bytes(image_grid(self.images.decode(x))) for x in found.trajectory]
        return Shown(pictures, found.nfe)

    def _denoiser(self, request: Request) -> Denoiser:
        """Return the denoiser of the wanted class."""
        if not self.classes:
            return self.model.denoiser
        require_in("label", request.label, f"[-1, {self.classes - 1}]")
        labels = jnp.full(COUNT, request.label)
        if request.label < 0:
            labels = jnp.arange(COUNT) % self.classes
        return dataclasses.replace(self.model.denoiser, labels=labels)

    def _projection(self, request: Request) -> Projection | None:
        """Return the projection onto the known pixels, if there are some."""
        if not request.known:
            return None
        height, width, channels = self.model.shape
        image, mask = np.zeros((2, height, width, channels), np.float32)
        for row, column, gray in request.known:
            require_in("row", row, f"[0, {height - 1}]")
            require_in("column", column, f"[0, {width - 1}]")
            require_in("gray level", gray, "[0, 255]")
            image[row, column], mask[row, column] = gray / 255, 1
        measured = jnp.asarray(mask * self.images.from_unit_range(image))
        return Projection(
            operator=inpainting((height, width, channels), mask),
            measurement=jnp.broadcast_to(measured, (COUNT, *measured.shape)),
        )


def server(model: TrainedModel, port: int) -> ThreadingHTTPServer:
    """Return the server of a model's page; port 0 takes a free one.

    Raises:
        ConfigError: as `Demo`, or if the port cannot be had.
    """
    demo = Demo(model)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self._answer(200, PAGE.read_bytes(), "text/html; charset=utf-8")
            elif self.path == "/options":
                self._answer_json(200, demo.options)
            else:
                self._answer_json(404, {"error": f"there is no {self.path} here"})

        def do_POST(self) -> None:
            try:
                length = int(self.headers.get("Content-Length", 0))
                request = Request.read(self.rfile.read(length))
                shown = demo.draw(request)
            except (ValueError, ScoreSDEError) as error:
                self._answer_json(400, {"error": str(error)})
                return
            pictures = [base64.b64encode(picture).decode() for picture in shown.pictures]
            self._answer_json(200, {"pictures": pictures, "evaluations": shown.evaluations})

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing of requests that are answered."""

        def _answer_json(self, status: int, content: Mapping[str, Any]) -> None:
            self._answer(status, json.dumps(content).encode(), "application/json")

        def _answer(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    try:
        return ThreadingHTTPServer(("127.0.0.1", port), Handler)
    except (OSError, OverflowError) as error:  # taken or not allowed; not in 0..65535
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(
            f"--port={port}: {reason}; give another one, or 0 for a free one"
        ) from error


def serve(model: TrainedModel, port: int = 8000) -> None:
    """Serve the page of a model until Ctrl-C.

    Args:
        model: as `load` returns it, of images.
        port: of this machine, 0 to 65535; 0 takes a free one.

    Raises:
        ConfigError: for points or series, for an upsampler, on several hosts, or if the port cannot
            be had.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"the page runs on one host, but here are {jax.process_count()}; give "
            "--num_processes=1 without --coordinator"
        )
    with server(model, port) as running:
        address = f"http://127.0.0.1:{running.server_port}"
        try:
            print(f"open {address} in a browser; Ctrl-C ends", flush=True)
            running.serve_forever()
        except KeyboardInterrupt:
            print("ended")
