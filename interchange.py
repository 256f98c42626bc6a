"""Checkpoints of other code bases, into a run of ours and back out of it.

A family is a module of `published` with the functions `recognises(tree)`, whether a file's content
is of that code base, and `import_state(tree, network, image_size, template, *, source)`.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from experiment import ConfigError, Experiment
from published import diffusers, edm, files, openai, score_sde
from published.mapping import Imported
from training import TrainState

# What a message calls a family.
FAMILIES = {
    "score_sde": score_sde,
    "EDM": edm,
    "improved-diffusion or guided-diffusion": openai,
    "diffusers": diffusers,
}


class Candidate(NamedTuple):
    """A network that a file might be of, its image size and abstract parameters."""

    name: str
    network: Any
    image_size: int
    template: Any


def import_state(
    experiment: Experiment,
    source: Path,
    others: Iterable[Candidate],
    attention_order: str = "legacy",
) -> tuple[str, TrainState]:
    """The name of the family of `source`, and its parameters with an optimizer that starts afresh.

    `attention_order` is a name in `published.openai.ATTENTION_ORDERS`, for files of that family.

    Raises:
      ConfigError: the file cannot be read, is of no family, or is not of this network; then the
        message names those of `others` that it is of.
    """
    try:
        tree = files.read(source)
    except ValueError as error:
        raise ConfigError(f"--source={error}") from error
    family = next((name for name, family in FAMILIES.items() if family.recognises(tree)), None)
    if family is None:
        raise ConfigError(
            f"--source={source} is a checkpoint of none of: {', '.join(FAMILIES)}; {_keys(tree)}"
        )
    mine = Candidate(
        experiment.config["model"]["name"],
        experiment.network,
        experiment.item_shape[0],
        experiment.trainer.abstract_state().params,
    )
    try:
        imported = _translated(family, tree, mine, source, attention_order)
    except ValueError as error:
        print("the file does not fit; looking for a configuration that it fits")
        fitting = [other.name for other in others if _fits(family, tree, other, source)]
        hint = f". It is of the network of --config={' or '.join(fitting)}" if fitting else ""
        raise ConfigError(f"--source={error}{hint}") from error
    return family, experiment.trainer.state_of(imported.params, imported.ema_params, imported.step)


def export_pytorch(experiment: Experiment, state: TrainState, target: Path) -> None:
    """Write the checkpoint as score_sde_pytorch's, which that code base goes on from.

    Raises:
      ConfigError: there is a file already, or that code base has no such network.
    """
    if target.exists():
        raise ConfigError(f"--target={target} is there already; give the name of a new file")
    layout = experiment.layout
    try:
        score_sde.export_pytorch(
            experiment.network,
            experiment.item_shape[0],
            layout.fetch_tree(state.params),
            layout.fetch_tree(state.ema_params),
            int(state.step),
            target,
            ema_decay=experiment.config["ema"]["rate"],
        )
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _translated(
    family: str, tree: Any, candidate: Candidate, source: Path, attention_order: str = "legacy"
) -> Imported:
    module = FAMILIES[family]
    options = {"attention_order": attention_order} if module is openai else {}
    _, network, image_size, template = candidate
    return module.import_state(tree, network, image_size, template, source=str(source), **options)


def _fits(family: str, tree: Any, candidate: Candidate, source: Path) -> bool:
    try:
        _translated(family, tree, candidate, source)
    except ValueError:
        return False
    return True


def _keys(tree: Any) -> str:
    if not isinstance(tree, dict):
        return f"it holds a {type(tree).__name__}"
    return f"at the top it holds {', '.join(map(repr, list(tree)[:8]))}"
