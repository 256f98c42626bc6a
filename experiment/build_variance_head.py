"""Build the variance head of a run, config.variance_head: its network, objective and training."""

from functools import partial
from typing import Any

from jax.tree_util import Partial
from jaxtyping import Array, Key

from experiment.build_model import init_network, network_functions, network_output
from experiment.build_training import part_trainer
from experiment.data import Data
from experiment.experiment import Model, VarianceHeadModel
from experiment.options import VarianceHeadOptions
from experiment.reader import Reader
from objectives.uncertainty import TrainedHead, VarianceHead, VarianceHeadLoss
from training.sharding import Sharding


def build_variance_head(reader: Reader, data: Data, model: Model) -> VarianceHeadModel:
    """Return the variance head that a configuration describes.

    Args:
        reader: of the configuration.
        data: where its batches come from.
        model: the model beside which it is trained; its network is of the same kind.

    Raises:
        ConfigError: for the first field that is wrong.
    """
    loss, options = reader.build_all(
        "variance_head", (VarianceHeadLoss, VarianceHeadOptions)
    ).values()
    # Without what the model's network has beside its output for x_t: classes, variances, labels.
    fields = {"num_classes": 0, "learned_variance": False, "augment_labels": 0}
    if options.features is not None:
        fields["features"] = options.features
    own = {name: value for name, value in fields.items() if hasattr(model.network, name)}
    network = model.network.copy(**own)
    reader.record("variance_head", features=network.features)
    apply, apply_with_dropout = network_functions(
        network, network_output, Sharding(), data.parallel
    )

    def head(params: Any, dropout: Key[Array, ""] | None = None) -> VarianceHead:
        return VarianceHead(
            network=Partial(apply, params)
            if dropout is None
            else Partial(apply_with_dropout, params, dropout),
            target=loss.target,
            conditioning=model.options.conditioning,
            num_timesteps=model.options.num_timesteps,
            radius=(data.limits[1] - data.limits[0]) / 2,
        )

    def trained(params: Any, dropout: Key[Array, ""] | None = None) -> TrainedHead:
        return TrainedHead(head=head(params, dropout))

    trainer = part_trainer(
        "variance_head",
        options,
        data,
        init=partial(init_network, network, data.shape),
        model=trained,
        loss=loss,
        classes=model.num_classes,
    )
    return VarianceHeadModel(network=network, head=head, trainer=trainer, options=options)
