"""Build the data of an experiment, config.data."""

from data.rows import kind_of
from experiment.data import Data
from experiment.images import Images
from experiment.kinds import KINDS, Kind
from experiment.options import DataOptions, RowOptions
from experiment.reader import Reader, config_errors
from experiment.rows import Rows
from training.parallel import DataParallel


def build_data(reader: Reader, parallel: DataParallel) -> Data:
    """Return the data that a configuration describes; rows of floats are read.

    Raises:
        ConfigError: for the first field that is wrong, and rows that cannot be read.
    """
    kind = settle_kind(reader)
    if kind.quantized:
        return Images(reader.build("data", DataOptions), parallel)
    data = Rows(reader.build("data", RowOptions), parallel)
    with config_errors("data"):
        scaler = data.scaler
    reader.record("data", shape=data.shape, mean=scaler.mean, std=scaler.std)
    return data


def settle_kind(reader: Reader) -> Kind:
    """Return the kind of the data, and settle the fields that depend on it.

    Raises:
        ConfigError: for an unknown kind, or a file that holds none.
    """
    section = reader.config["data"]
    if section["kind"] is None:
        with config_errors("data"):
            section["kind"] = kind_of(section["name"])
    kind = reader.lookup("data", KINDS, "kind")
    for path, fields in kind.measurements.fields.items():
        for name, value in fields.items():
            if reader.config[path][name] is None:
                reader.config[path][name] = value
    return kind
