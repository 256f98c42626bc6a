"""Checkpoints of other projects, whichever of them wrote the file.

Each project has a module with the functions `is_checkpoint` and `import_state` (`published`), or
`is_classifier` and `import_classifier` for its classifiers of noisy images.
"""

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from errors import ConfigError
from published import diffusers, edm, openai, score_sde, score_sde_classifier
from published.formats import read
from published.mapping import Imported

# The name of a project in messages, and its module.
PROJECTS: dict[str, Any] = {
    "score_sde": score_sde,
    "EDM": edm,
    "improved-diffusion or guided-diffusion": openai,
    "diffusers": diffusers,
}
# The same for classifiers of noisy images.
CLASSIFIER_PROJECTS: dict[str, Any] = {
    "guided-diffusion": openai,
    "score_sde": score_sde_classifier,
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
    tree = _content(source)
    if classifier := _classifier_project(tree):
        raise ConfigError(
            f"--source={source} is a classifier of {classifier}; give it to "
            "--mode=import_classifier, with the --config and --workdir of the network it guides"
        )
    project = _project(tree)
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


def import_classifier(
    source: Path,
    candidate: Candidate,
    others: Iterable[Candidate],
    attention_order: str = "legacy",
) -> tuple[str, dict[str, Any]]:
    """Read a classifier of noisy images. Return its project's name and its parameters.

    Arguments and errors as in `import_state`.
    """
    tree = _content(source)
    project = _classifier_project(tree)
    if project is None:
        if network := _project(tree):
            raise ConfigError(
                f"--source={source} is a network of {network} that makes images, not a classifier; "
                "give it to --mode=import"
            )
        raise ConfigError(
            f"--source={source} is a classifier of none of: {', '.join(CLASSIFIER_PROJECTS)}; "
            f"{_keys(tree)}"
        )

    def translated(candidate: Candidate) -> dict[str, Any]:
        module = CLASSIFIER_PROJECTS[project]
        options = {"attention_order": attention_order} if module is openai else {}
        _, network, image_size, template = candidate
        return module.import_classifier(
            tree, network, image_size, template, source=str(source), **options
        )

    try:
        return project, translated(candidate)
    except ValueError as error:
        fitting = []
        for other in others:
            with suppress(ValueError):
                translated(other)
                fitting.append(other.name)
        hint = f". It fits --config={' or '.join(fitting)}" if fitting else ""
        raise ConfigError(f"--source={error}{hint}") from error


def _content(source: Path) -> Any:
    try:
        return read.read(source)
    except ValueError as error:
        raise ConfigError(f"--source={error}") from error


def _project(tree: Any) -> str | None:
    return next((name for name, module in PROJECTS.items() if module.is_checkpoint(tree)), None)


def _classifier_project(tree: Any) -> str | None:
    modules = CLASSIFIER_PROJECTS.items()
    return next((name for name, module in modules if module.is_classifier(tree)), None)


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
