"""Build the data of an experiment, config.data."""

from experiment.data import Data
from experiment.images import Images
from experiment.kinds import KINDS
from experiment.options import DataOptions, RowOptions
from experiment.reader import Reader, config_errors
from experiment.rows import Rows
from training.parallel import DataParallel


def build_data(reader: Reader, parallel: DataParallel) -> Data:
    """Return the data that a configuration describes; rows of floats are read.

    Raises:
        ConfigError: for the first field that is wrong, and rows that cannot be read.
    """
    kind = reader.lookup("data", KINDS, "kind")
    if kind.quantized:
        return Images(reader.build("data", DataOptions), parallel)
    data = Rows(reader.build("data", RowOptions), parallel)
    with config_errors("data"):
        scaler = data.scaler
    reader.record("data", shape=data.shape, mean=scaler.mean, std=scaler.std)
    return data
