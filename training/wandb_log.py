"""The log of a training run in Weights & Biases, which is imported only if it is asked for.

Steps are a value of each line, not the service's own counter, which refuses a step below its last:
a resumed run repeats the steps after its checkpoint, with the same numbers.
"""

import importlib.util
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from errors import ConfigError
from files.nested import numbers
from files.writing import write_file


def require_wandb(project: str) -> None:
    """Raise ConfigError unless the package is installed."""
    if importlib.util.find_spec("wandb") is None:
        raise ConfigError(
            f"config.logging.wandb={project!r} needs a package that is not installed; run: "
            "pip install wandb, or leave the field empty"
        )


class WandbLog:
    """A run of Weights & Biases, the same one each time the run in a folder continues.

    Its files are in the folder `wandb` of the run, and its name in `wandb/run_id`. With
    WANDB_MODE=offline nothing leaves the machine until `wandb sync`.

    Args:
        workdir: the run's folder.
        project: the project.
        config: the resolved configuration.
        name: of the run there; by default that of the folder.

    Raises:
        ConfigError: if wandb is not installed, or refuses to start.
    """

    def __init__(
        self, workdir: Path, project: str, config: Mapping[str, Any], *, name: str = ""
    ) -> None:
        field = f"config.logging.wandb={project!r}"
        require_wandb(project)
        import wandb

        self._picture = wandb.Image
        try:
            self._run = wandb.init(
                project=project,
                name=name or workdir.name,
                id=_run_id(workdir / "wandb" / "run_id"),
                resume="allow",
                dir=workdir,
                config=dict(config),
                settings=wandb.Settings(console="off", quiet=True),
            )
        except wandb.Error as error:
            raise ConfigError(
                f"{field}: {' '.join(str(error).split())}; run `wandb login`, set "
                "WANDB_MODE=offline, or leave the field empty"
            ) from error
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Record the numbers of a step."""
        self._run.log({"step": step, **numbers(values)})

    def image(self, step: int, name: str, image: UInt8[np.ndarray, "h w c"]) -> None:
        """Record a picture."""
        picture = image[..., 0] if image.shape[-1] == 1 else image
        self._run.log({"step": step, name: self._picture(picture)})

    def close(self) -> None:
        """Finish the run, which waits until all is written or sent."""
        self._run.finish()


def _run_id(file: Path) -> str:
    """Return the name that a folder's run has in Weights & Biases, made at the first start."""
    try:
        if name := file.read_text().strip():
            return name
    except FileNotFoundError:
        pass
    name = secrets.token_hex(4)
    write_file(file, lambda temporary: temporary.write_text(f"{name}\n"))
    return name
