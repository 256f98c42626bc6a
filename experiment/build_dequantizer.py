"""Build the dequantizer of a run, config.dequantizer: its network, objective and training."""

from functools import cache, partial
from typing import Any

from jax.tree_util import Partial
from jaxtyping import Array, Key

from bounds.dequantization import DequantizationBound, DequantizedModel, Dequantizer
from experiment.build_training import part_trainer
from experiment.data import Data
from experiment.experiment import DequantizerModel
from experiment.options import DequantizerOptions
from experiment.reader import Reader, config_errors
from models.dequantizer import CouplingDequantizer, apply_dequantizer, init_dequantizer


def build_dequantizer(reader: Reader, data: Data, classes: int) -> DequantizerModel:
    """Return the dequantizer that a configuration describes.

    `classes` is the number of classes of the score model.

    Raises:
        ConfigError: for the first field that is wrong.
    """
    network, loss, options = reader.build_all(
        "dequantizer", (CouplingDequantizer, DequantizationBound, DequantizerOptions)
    ).values()
    with config_errors("dequantizer"):
        network.validate()

    def dequantizer(params: Any) -> Dequantizer:
        return Dequantizer(network=Partial(_function(network), params), bin_width=data.bin_width)

    def model(params: Any, dropout: Key[Array, ""] | None = None) -> DequantizedModel:
        return DequantizedModel(dequantizer=dequantizer(params))

    trainer = part_trainer(
        "dequantizer",
        options,
        data,
        init=partial(init_dequantizer, network, data.shape),
        model=model,
        loss=loss,
        classes=classes,
    )
    return DequantizerModel(dequantizer=dequantizer, trainer=trainer, options=options)


@cache
def _function(network: CouplingDequantizer) -> Any:
    """Return the function (params, images, noise) of a network, one for all who need it.

    jit takes a Partial of the same function for the same program.
    """
    return partial(apply_dequantizer, network)
