"""Checkpoints of other projects, whichever of them wrote the file.

Each project has a module with the functions `is_checkpoint` and `import_state` (`published`), or
`is_classifier` and `import_classifier` for its classifiers of noisy images.

A file that does not fit the network is compared with other configurations. Their parameters are not
made unless every name fits, since that takes a second each. Then the width may still differ, which
the first convolution shows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from errors import ConfigError
from files.nested import flatten
from models.adm import ADM
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
_SHOWN = 4  # configurations in a message


class Candidate(NamedTuple):
    """A network that a file may fit.

    Attributes:
        name: of its configuration, such as "configs/vp_cifar10.py:ddpm".
        network: the network.
        image_size: height of its images.
        template: returns the abstract parameters of a network for these images.
    """

    name: str
    network: Any
    image_size: int
    template: Callable[[Any], Any]


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
            network. The message then has what the file shows of its network, and the settings or
            those of `others` that it fits.
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
    translated = partial(_translated, project, tree, source=source)
    try:
        template = candidate.template(candidate.network)
        return project, translated(candidate, template, attention_order=attention_order)
    except ValueError as error:
        print("The file does not fit. Looking for a configuration that it fits.")
        problem = str(error).removeprefix(str(source)).lstrip(": ")
        found = f"It seems to be of {project}{_described(tree)}"
        hint = _hint(tree, candidate, others, translated)
        raise ConfigError(f"--source={source}: {problem}. {found}{hint}") from error


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
    module = CLASSIFIER_PROJECTS[project]
    options = {"attention_order": attention_order} if module is openai else {}

    def translated(candidate: Candidate, template: Any) -> dict[str, Any]:
        network, size = candidate.network, candidate.image_size
        return module.import_classifier(
            tree, network, size, template, source=str(source), **options
        )

    try:
        return project, translated(candidate, candidate.template(candidate.network))
    except ValueError as error:
        fitting = [other.name for other in others if _fits(translated, other)]
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


def _fits(translated: Callable[..., Any], candidate: Candidate) -> bool:
    try:
        translated(candidate, partial(candidate.template, candidate.network))
    except (ValueError, TypeError):  # also of a width that no network has
        return False
    return True


def _translated(
    project: str,
    tree: Any,
    candidate: Candidate,
    template: Any,
    *,
    source: Path,
    attention_order: str = "legacy",
) -> Imported:
    module = PROJECTS[project]
    options = {"attention_order": attention_order} if module is openai else {}
    return module.import_state(
        tree, candidate.network, candidate.image_size, template, source=str(source), **options
    )


def _hint(
    tree: Any, candidate: Candidate, others: Iterable[Candidate], translated: Callable[..., Any]
) -> str:
    """Return the end of a message, which says what the file fits: fields, or configurations."""
    fits = partial(_fits, translated)
    same = [field for field, changed in _variants(tree, candidate) if fits(changed)]
    if same:
        return f". It fits with {same[0]}"
    candidates = list(others)
    exact = [other.name for other in candidates if fits(other)]
    scaled = (
        f"{changed.name} {field}"
        for other in candidates
        for field, changed in _variants(tree, other)
        if fits(changed)
    )
    names = exact or list(scaled)
    if not names:
        return ", and fits no configuration here"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f". It fits --config={' or '.join(names[:_SHOWN])}{more}"


def _variants(tree: Any, candidate: Candidate) -> Iterator[tuple[str, Candidate]]:
    """Yield the candidate with the width of the file, and the option that sets it."""
    width, network = _first_convolution(_tensors(tree))[1], candidate.network
    features = getattr(network, "features", width)
    # ADM's first convolution has the width of its first resolution.
    wanted = width / (network.channel_multipliers[0] if isinstance(network, ADM) else 1)
    if wanted != features and wanted >= 1 and wanted == int(wanted):
        changed = candidate._replace(network=network.clone(features=int(wanted)))
        yield f"--config.model.features={int(wanted)}", changed


def _tensors(tree: Any) -> dict[str, Any]:
    """Return the tensors of a file of any project by name."""
    if isinstance(tree, list):
        tree = tree[0]
    for key in ("params_ema", "model", "tensors"):
        if isinstance(tree, Mapping) and isinstance(tree.get(key), Mapping):
            tree = tree[key]
    return {
        name: value
        for name, value in flatten(tree if isinstance(tree, Mapping) else {}).items()
        if isinstance(value, np.ndarray)
    }


def _convolutions(tensors: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the channels of input and output of all 3x3 convolutions."""
    found = []
    for value in tensors.values():
        if value.ndim == 4 and value.shape[2:] == (3, 3):  # PyTorch
            found.append((value.shape[1], value.shape[0]))
        elif value.ndim == 4 and value.shape[:2] == (3, 3):  # Flax
            found.append((value.shape[2], value.shape[3]))
    return found


def _first_convolution(tensors: Mapping[str, Any]) -> tuple[int, int]:
    """Return the channels of images and of the first convolution; zeros where there is none."""
    convolutions = _convolutions(tensors)
    if not convolutions:
        return 0, 0
    channels = min(before for before, _ in convolutions)
    return channels, min(after for before, after in convolutions if before == channels)


def _described(tree: Any) -> str:
    """Return what the tensors of a file show of its network, to end a clause."""
    tensors = _tensors(tree)
    channels, features = _first_convolution(tensors)
    if not features:
        return ""
    widths = sorted({after for _, after in _convolutions(tensors) if after % features == 0})
    size = sum(value.size for value in tensors.values())
    classes = [
        value.shape[axis]
        for name, axis in (("label_emb.weight", 0), ("map_label.weight", 1))
        for key, value in tensors.items()
        if key.removeprefix("model.") == name and value.ndim == 2
    ]
    multiples = ", ".join(f"{width // features}" for width in widths)
    shown = [
        f"images of {channels} channels",
        f"{features} features times {multiples}",
        f"{classes[0]} classes" if classes else "no classes",
        f"{size / 1e6:.1f}M numbers",
    ]
    return f" ({', '.join(shown)})"


def _keys(tree: Any) -> str:
    if not isinstance(tree, dict):
        return f"it holds a {type(tree).__name__}"
    return f"at the top it holds {', '.join(map(repr, list(tree)[:8]))}"
