"""Checkpoints of other projects, whichever of them wrote the file.

Each project has a module with the functions `is_checkpoint` and `import_state` (`published`), or
`is_classifier` and `import_classifier` for its classifiers of noisy images.

A file that does not fit the network is compared with other configurations. Their parameters are not
made unless every name fits, since that takes a second each. Then the width may still differ, which
the first convolution shows.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from errors import ConfigError
from files.nested import flatten
from files.paths import AnyPath
from models.adm import ADMEncoder
from models.blocks.checks import field_name
from published import diffusers, edm, openai, score_sde, score_sde_classifier
from published.formats import read
from published.mapping import Imported, NotFiniteError

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
_GROUPS = (0, 32)  # values of num_groups in these projects
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
    source: AnyPath,
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
    module = PROJECTS[project]
    translated = _translation(module, module.import_state, tree, source, attention_order)
    return project, _fitted(project, tree, source, candidate, others, translated)


def import_classifier(
    source: AnyPath,
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
    translated = _translation(module, module.import_classifier, tree, source, attention_order)
    return project, _fitted(project, tree, source, candidate, others, translated)


def _content(source: AnyPath) -> Any:
    try:
        return read.read(source)
    except ValueError as error:
        raise ConfigError(f"--source={error}") from error


def _project(tree: Any) -> str | None:
    return next((name for name, module in PROJECTS.items() if module.is_checkpoint(tree)), None)


def _classifier_project(tree: Any) -> str | None:
    modules = CLASSIFIER_PROJECTS.items()
    return next((name for name, module in modules if module.is_classifier(tree)), None)


# Translates the file for a candidate, given its abstract parameters, or the function of them.
Translation = Callable[[Candidate, Any], Any]


def _translation(
    module: Any, function: Callable[..., Any], tree: Any, source: AnyPath, attention_order: str
) -> Translation:
    options = {"attention_order": attention_order} if module is openai else {}

    def translated(candidate: Candidate, template: Any) -> Any:
        _, network, image_size, _ = candidate
        return function(tree, network, image_size, template, source=str(source), **options)

    return translated


def _fitted(
    project: str,
    tree: Any,
    source: AnyPath,
    candidate: Candidate,
    others: Iterable[Candidate],
    translated: Translation,
) -> Any:
    """Return the translation, or raise ConfigError with what would fit the file."""
    try:
        return translated(candidate, candidate.template(candidate.network))
    except NotFiniteError as error:
        raise ConfigError(f"--source={error}") from error
    except ValueError as error:
        problem = str(error).removeprefix(str(source))
        separator = "" if problem.startswith((" ", ":")) else ": "
        found = f"The file seems to be of {project}{_described(tree)}"
        hint = _hint(tree, candidate, others, translated)
        raise ConfigError(f"--source={source}{separator}{problem}. {found}{hint}") from error


def _hint(
    tree: Any, candidate: Candidate, others: Iterable[Candidate], translated: Translation
) -> str:
    """Return the end of a message, which says what the file fits: fields, or configurations."""

    def fits(candidate: Candidate) -> bool:
        try:
            translated(candidate, partial(candidate.template, candidate.network))
        except (ValueError, TypeError):  # also of a width that no network has
            return False
        return True

    def fitting(candidate: Candidate) -> str | None:
        variants = _variants(tree, candidate)
        return next((options for options, changed in variants if fits(changed)), None)

    if options := fitting(candidate):
        return f". It fits with {options}"
    candidates = list(others)
    exact = [other.name for other in candidates if fits(other)]
    names = exact or [f"{other.name} {how}" for other in candidates if (how := fitting(other))]
    if not names:
        return ", and fits no configuration here"
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f". It fits --config={' or '.join(names[:_SHOWN])}{more}"


def _variants(tree: Any, candidate: Candidate) -> Iterator[tuple[str, Candidate]]:
    """Yield the candidate with other fields, and the options that set them.

    Features are those of the file. The groups of GroupNorm, which no file shows, are all those that
    projects have.
    """
    network, width = candidate.network, _first_convolution(_tensors(tree))[1]
    # ADM's first convolution has the width of its first resolution.
    wanted = width / (network.channel_multipliers[0] if isinstance(network, ADMEncoder) else 1)
    known = {field: getattr(network, field, None) for field in ("features", "num_groups")}
    features = [known["features"], int(wanted)] if wanted == int(wanted) > 0 else []
    for values in product(features, (known["num_groups"], *_GROUPS)):
        changes: dict[str, Any] = {
            field: value
            for (field, now), value in zip(known.items(), values, strict=True)
            if now is not None and now != value
        }
        if changes:
            options = (f"--{field_name(network, field)}={new}" for field, new in changes.items())
            yield " ".join(options), candidate._replace(network=network.clone(**changes))


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
        f"an input of {channels} channels",
        f"{features} features times {multiples}",
        f"{classes[0]} classes" if classes else "no classes",
        f"{size / 1e6:.1f}M numbers",
    ]
    return f" ({', '.join(shown)})"


def _keys(tree: Any) -> str:
    if not isinstance(tree, dict):
        return f"it holds a {type(tree).__name__}"
    return f"at the top it holds {', '.join(map(repr, list(tree)[:8]))}"
