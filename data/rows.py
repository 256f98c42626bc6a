"""Points and series: rows of floats in the data's own units, in memory, and their batches.

A row is a point (d,) or a series (length, channels). Rows come from the formulas of
`data.generators`, from an .npy, or from an .npz with the names of `data.npz`.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32, Int64

from data.batches import Order
from data.fingerprints import pixel_fingerprint, training_fingerprint
from data.generators import POINTS, SERIES, Generator
from data.held_out import held_out_count, hold_out
from data.npz import HELD_OUT_KEYS, TRAIN_KEYS, checked_labels, local_arrays, only_key
from data.scaling import Standardizer
from errors import SEEDS, require_choice, require_in, require_memory
from files.arrays import Header, array_place, open_arrays, read_array
from files.paths import in_bucket

GENERATORS: Mapping[str, Mapping[str, Generator]] = {"points": POINTS, "series": SERIES}
RANKS = {"points": 2, "series": 3}  # of an array of rows, by the kind of the data
_AXES = {"points": "(n, coordinates)", "series": "(n, length, channels)"}
_TRAIN, _TEST = "train", "test"


@dataclass(frozen=True, kw_only=True, eq=False)
class RowData:
    """The rows of a data set, with their classes where there are any.

    Attributes:
        train, test: the rows, in the data's units.
        class_names: the name of class 0, 1, ...; None where classes have no names.
        notes: lines for the user on what was not read.
    """

    name: str
    train: Float32[np.ndarray, "n ..."]
    test: Float32[np.ndarray, "m ..."]
    train_labels: Int32[np.ndarray, " n"] | None = None
    test_labels: Int32[np.ndarray, " m"] | None = None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that identify the training rows, their order and classes."""
        return training_fingerprint(self.train, self.train_labels)

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """64 hexadecimal digits that identify the rows of each split and their order."""
        return {_TRAIN: pixel_fingerprint(self.train), _TEST: pixel_fingerprint(self.test)}


def kind_of(name: str) -> str:
    """Return the kind of a data set from its name, or from the header of its file.

    An array of floats holds points or series, and what is neither is images. Files in buckets are
    taken for images.
    """
    for kind in GENERATORS:
        if name.startswith(f"{kind}:"):
            return kind
    header = None if in_bucket(name) else _header(name)  # which might be a long way to read
    if header is None or header.dtype.kind != "f":
        return "images"
    ranks = {rank: kind for kind, rank in RANKS.items()}
    if len(header.shape) not in ranks:
        raise ValueError(
            f"config.data.name={name!r} holds {header.dtype} of shape {header.shape}; expected "
            f"points {_AXES['points']}, series {_AXES['series']}, or images as uint8"
        )
    return ranks[len(header.shape)]


def shape_of(name: str, kind: str) -> tuple[int, ...]:
    """Return the shape of a row, without reading rows.

    Raises:
        ValueError: for an unknown generator, or a file whose array has another rank.
        FileError: if the file cannot be read.
    """
    generator = _generator(name)
    if generator is not None:
        if not name.startswith(f"{kind}:"):
            raise ValueError(f"kind={kind!r} does not fit name={name!r}; leave it out")
        return generator.shape
    header, path = _header(name), _path(name)
    if header is None and path is not None:
        missing = "holds no array train" if path.is_file() else "is missing"
        raise ValueError(f"name={name!r}: the file {missing}; give rows {_AXES[kind]} in it")
    if header is None:
        raise ValueError(
            f"name={name!r} is not {kind}; give {kind}:{f' or {kind}:'.join(GENERATORS[kind])}, or "
            f"the path of an .npy or .npz of floats {_AXES[kind]}"
        )
    _check(f"name={name!r}", header, kind)
    return header.shape[1:]


def load_rows(name: str, kind: str, *, samples: int, seed: int) -> RowData:
    """Return a data set of points or series; a seeded tenth is held out where no test rows are.

    Args:
        name: `points:NAME` or `series:NAME` of `data.generators`, or the path of an .npz or .npy.
        kind: "points" or "series".
        samples: number of generated rows, with those that are held out.
        seed: of the generator.

    Raises:
        ValueError: as `shape_of`, and for rows that are not finite or too few.
        FileError: if a file cannot be read.
    """
    notes: tuple[str, ...] = ()
    generator = _generator(name)
    if generator is not None:
        require_memory("config.data.samples", samples, 8 * samples * int(np.prod(generator.shape)))
        drawn = generator.draw(np.random.default_rng(seed), samples)
        labels = None if drawn.labels is None else drawn.labels.astype(np.int32)
        splits = {_TRAIN: _Split(drawn.rows.astype(np.float32), labels)}
    else:
        splits, notes = _read(name, kind)
    if _TEST not in splits:
        splits = _hold_out(name, splits[_TRAIN], seed)
    train, test = splits[_TRAIN], splits[_TEST]
    if train.rows.shape[1:] != test.rows.shape[1:]:
        raise ValueError(
            f"config.data.name={name!r}: training rows {train.rows.shape[1:]} and test rows "
            f"{test.rows.shape[1:]} differ in shape"
        )
    return RowData(
        name=name,
        train=train.rows,
        test=test.rows,
        train_labels=train.labels,
        test_labels=test.labels,
        notes=notes,
    )


def standardizer_of(name: str, rows: Float32[np.ndarray, "n ..."]) -> Standardizer:
    """Return the map to mean 0 and standard deviation 1 over rows, to six digits.

    So few digits are the same on every machine, whatever the order of its sums.

    Raises:
        ValueError: for a coordinate or channel that is constant.
    """
    flat = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
    mean, std = flat.mean(axis=0), flat.std(axis=0)
    if (constant := np.flatnonzero(std <= 1e-7 * np.abs(mean))).size:
        entry = "coordinate" if rows.ndim == RANKS["points"] else "channel"
        raise ValueError(
            f"config.data.name={name!r}: {entry} {constant[0]} is constant, so that it has no "
            f"density; remove it, or give config.data.std"
        )
    return Standardizer(mean=_six_digits(mean), std=_six_digits(std))


def _six_digits(values: np.ndarray) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


class _Split(NamedTuple):
    rows: Float32[np.ndarray, "n ..."]
    labels: Int32[np.ndarray, " n"] | None


def _generator(name: str) -> Generator | None:
    """Return the generator that a name chooses; None for a name of another kind."""
    kind, colon, formula = name.partition(":")
    if not colon or kind not in GENERATORS:
        return None
    require_choice("config.data.name", name, [f"{kind}:{each}" for each in GENERATORS[kind]])
    return GENERATORS[kind][formula]


def _path(name: str) -> Path | None:
    """Return the file of arrays that a name chooses, of a bucket its copy; None for no such name.

    Raises:
        BucketError: if a bucket cannot be read.
    """
    return local_arrays(os.path.expanduser(name)) if name.endswith((".npy", ".npz")) else None


def _header(name: str) -> Header | None:
    """Return the header of the training rows in a file; None if it is no file of arrays."""
    path, where = _path(name), f"config.data.name={name!r}"
    if path is None or not path.is_file():
        return None
    if path.suffix == ".npy":
        return array_place(path, where)[0]
    with open_arrays(path, where) as arrays:
        key = only_key(where, arrays, TRAIN_KEYS)
        return None if key is None else arrays.header(key)


def _check(where: str, header: Header, kind: str) -> None:
    shape = header.shape
    if header.dtype.kind not in "fiu":
        raise ValueError(f"{where} is {header.dtype}; store floats")
    if len(shape) != RANKS[kind]:
        remedies = {1: "array[:, None]", 2: "array[..., None]"} if kind == "series" else {}
        remedy = remedies.get(len(shape), "array.reshape(len(array), -1)")
        given = "" if kind == "points" else ", or give config.data.kind=points"
        raise ValueError(
            f"{where} has shape {shape}; {kind} are {_AXES[kind]}: store {remedy}{given}"
        )
    if 0 in shape:
        raise ValueError(f"{where} has shape {shape}; it holds no numbers")


def _read(name: str, kind: str) -> tuple[dict[str, _Split], tuple[str, ...]]:
    """Return the splits of a file, and notes on what was not read."""
    path, where = _path(name), f"config.data.name={name!r}"
    if path is None or not path.is_file():
        raise ValueError(f"{where}: there is no such file")
    if path.suffix == ".npy":
        header, _ = array_place(path, where)
        _check(where, header, kind)
        beside, labels = path.with_name(f"{path.stem}_labels.npy"), None
        if beside.exists():
            labels = checked_labels(str(beside), read_array(beside, f"{where}: {beside}"), header)
        return {_TRAIN: _Split(_floats(where, read_array(path, where)), labels)}, ()
    with open_arrays(path, where) as arrays:
        keys = {_TRAIN: TRAIN_KEYS}
        held = [names for names in HELD_OUT_KEYS.values() if only_key(where, arrays, names)]
        if held:
            keys[_TEST] = held[0]
        splits, used = {}, set()
        for split, names in keys.items():
            key = only_key(where, arrays, names)
            if key is None:
                raise ValueError(f"{where} holds {sorted(arrays)[:20]}; expected train and test")
            place, header, labels = f"{where}[{key!r}]", arrays.header(key), None
            _check(place, header, kind)
            if names[key] in arrays:
                labels = checked_labels(f"{where}[{names[key]!r}]", arrays[names[key]], header)
            splits[split] = _Split(_floats(place, arrays[key]), labels)
            used |= {key, names[key]}
        unused = sorted(set(arrays) - used)
    notes = (f"{where}: not used: {', '.join(unused[:20])}",) if unused else ()
    return splits, notes


def _floats(where: str, array: np.ndarray) -> Float32[np.ndarray, "n ..."]:
    with np.errstate(over="ignore"):
        rows = np.ascontiguousarray(array, np.float32)
    finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{where}: {np.sum(~finite)} of {len(rows)} rows hold NaN or infinite numbers, the "
            f"first is row {int(np.argmin(finite))}; remove or repair them"
        )
    return rows


def _hold_out(name: str, whole: _Split, seed: int) -> dict[str, _Split]:
    """Split rows into train and test by a seeded draw, each in the original order."""
    count = len(whole.rows)
    chosen = hold_out(name, "row", count, held_out_count(count), seed)
    return {
        split: _Split(whole.rows[rows], None if whole.labels is None else whole.labels[rows])
        for split, rows in chosen.items()
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class RowBatches:
    """The endless training stream: batch k is a pure function of (seed, k).

    Every epoch is a fresh permutation of all rows, as in `data.batches.TrainingBatches`.

    Args:
        rows: all training rows, in the data's units.
        batch_size: rows of the global batch.
        seed: decides the order.
        scaler: the map to the network's range.
        labels: their classes, for networks with classes.

    Raises:
        ValueError: for no rows, a batch size below 1 or a negative seed.
    """

    rows: Float32[np.ndarray, "n ..."]
    batch_size: int
    seed: int
    scaler: Standardizer
    labels: Int32[np.ndarray, " n"] | None = None

    def __post_init__(self) -> None:
        require_in("number of rows", len(self.rows), "[1, inf)")
        require_in("config.training.batch_size", self.batch_size, "[1, inf)")
        require_in("config.seed", self.seed, SEEDS)

    def indices(self, step: int) -> Int64[np.ndarray, " batch_size"]:
        """Return the indices of the training rows in batch `step` (0, 1, ...), in order."""
        return Order(len(self.rows), self.batch_size, self.seed).indices(step)

    def at(self, step: int, rows: slice = slice(None)) -> Float32[np.ndarray, "rows ..."]:
        """Return rows `rows` of global batch `step`, standardized."""
        return self._scaled[self.indices(step)[rows]]

    @cached_property
    def _scaled(self) -> Float32[np.ndarray, "n ..."]:
        return self.scaler.forward(self.rows)

    def labels_at(self, step: int, rows: slice = slice(None)) -> Int32[np.ndarray, " rows"]:
        """Return the classes of the rows `at(step, rows)`.

        Raises:
            ValueError: if the data have no classes.
        """
        if self.labels is None:
            raise ValueError("these training rows have no classes")
        return self.labels[self.indices(step)[rows]]

    def close(self) -> None:
        """Do nothing: no worker reads rows ahead."""
