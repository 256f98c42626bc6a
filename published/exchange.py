"""Checkpoints of other projects, whichever of them wrote the file.

Each project has a module with the functions `is_checkpoint` and `import_state` (`published`).
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from errors import ConfigError
from published import diffusers, edm, openai, score_sde
from published.formats import read
from published.mapping import Imported

# The name of a project in messages, and its module.
PROJECTS: dict[str, Any] = {
    "score_sde": score_sde,
    "EDM": edm,
    "improved-diffusion or guided-diffusion": openai,
    "diffusers": diffusers,
}


class Candidate(NamedTuple):
    """A network that a file may fit, with the name of its configuration."""

    name: str
    network: Any
    image_size: int
    template: Any


def import_state(
    source: Path,
    candidate: Candidate,
    others: Iterable[Candidate],
    attention_order: str = "legacy",
) -> tuple[str, Imported]:
    """Read the checkpoint `source` for a network. Return its project's name and its parameters.

    `attention_order` is a name in `published.openai.ATTENTION_ORDERS`, for files of that project.

    Raises:
        ConfigError: the file cannot be read, belongs to no known project, or does not fit the
            network. The message then names those of `others` that it fits.
    """
    try:
        tree = read.read(source)
    except ValueError as error:
        raise ConfigError(f"--source={error}") from error
    project = next((name for name, module in PROJECTS.items() if module.is_checkpoint(tree)), None)
    if project is None:
        raise ConfigError(
            f"--source={source} is a checkpoint of none of: {', '.join(PROJECTS)}; {_keys(tree)}"
        )
    try:
        return project, _translated(project, tree, candidate, source, attention_order)
    except ValueError as error:
        print("The file does not fit. Looking for a configuration that it fits.")
        fitting = [other.name for other in others if _fits(project, tree, other, source)]
        hint = f". It fits --config={' or '.join(fitting)}" if fitting else ""
        raise ConfigError(f"--source={error}{hint}") from error


def _translated(
    project: str, tree: Any, candidate: Candidate, source: Path, attention_order: str = "legacy"
) -> Imported:
    module = PROJECTS[project]
    options = {"attention_order": attention_order} if module is openai else {}
    _, network, image_size, template = candidate
    return module.import_state(tree, network, image_size, template, source=str(source), **options)


def _fits(project: str, tree: Any, candidate: Candidate, source: Path) -> bool:
    try:
        _translated(project, tree, candidate, source)
    except ValueError:
        return False
    return True


def _keys(tree: Any) -> str:
    if not isinstance(tree, dict):
        return f"it holds a {type(tree).__name__}"
    return f"at the top it holds {', '.join(map(repr, list(tree)[:8]))}"
