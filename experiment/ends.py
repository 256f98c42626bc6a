"""The other ends of the paths from data: noise, or rows of a second data set.

Training and sampling take them from one object: `Ends.training_batches` has the pairs (x0, x1) of
a coupling, and `Ends.starts` the x1 where samples start. Ends are in the range of the network's
data, by the scaling of config.data: both sets have the same units.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from data.batches import PRIOR
from data.couplings import (
    COUPLINGS,
    CoupledBatches,
    Coupling,
    MappedBatches,
    NormalBatches,
    PairBatches,
    seed_of_other,
)
from data.rows import kind_of
from errors import ConfigError, require_choice
from experiment.data import Batches, Data
from experiment.reader import Reader, config_errors
from experiment.tasks import TASKS, Measurement
from guidance.operators import LinearOperator
from sde_lib import SDE

FIELD = "config.coupling.data"


@dataclass(frozen=True, kw_only=True)
class EndOptions:
    """Where x1 comes from.

    Args:
        data: a data set, of the same kind and shape as config.data; "" for none.
        measurement: a name in TASKS whose operator A makes x1 = A^+ A x0 of x0; "" for none.

    Raises:
        ValueError: if both are given.
    """

    data: str = ""
    measurement: str = ""

    def __post_init__(self) -> None:
        if self.data and self.measurement:
            raise ValueError(
                f"data={self.data!r} and measurement={self.measurement!r} both say what x1 is; "
                "leave one out"
            )


@dataclass(frozen=True, kw_only=True)
class Ends:
    """The ends x1 of an experiment.

    Attributes:
        name: of the coupling, in COUPLINGS.
        coupling: which x1 belongs to which x0.
        data: the data set of x0.
        other: the data set of x1; None for noise, or ends that are computed.
        operator: the A of ends x1 = A^+ A x0; None for others.
        diffusion: of Brownian bridges between the ends; 0 for straight lines.
    """

    name: str
    coupling: Coupling
    data: Data
    other: Data | None
    operator: LinearOperator | None
    diffusion: float

    @property
    def plain(self) -> bool:
        """Whether ends are noise, independent of the data."""
        return self.given is None and self.name == "independent" and not self.diffusion

    def require_noise(self, what: str) -> None:
        """Raise ConfigError unless ends are independent noise, on which `what` relies."""
        if not self.plain:
            raise ConfigError(
                f"{what} is for networks of data and noise, and config.coupling.name={self.name!r} "
                f"with config.coupling.data={self.sets[1]!r} has other ends; take a run without"
            )

    @property
    def given(self) -> Data | None:
        """The data set whose test rows are ends, perhaps after the operator; None for noise."""
        return self.data if self.operator is not None else self.other

    @property
    def sets(self) -> tuple[str, str]:
        """The names of the data sets of x0 and of x1; "" for ends that are in no set."""
        other = "" if self.other is None else self.other.options.name
        return self.data.options.name, other

    def training_batches(
        self, batch_size: int, seed: int, *, labels: bool, pairs: Any = None
    ) -> Batches:
        """Return the stream of pairs (batch, 2, ...); batch k depends on the seed and k alone.

        Args:
            batch_size, seed, labels: as of `Data.training_batches`.
            pairs: simulated pairs (n, 2, ...), if the coupling needs some.

        Raises:
            ConfigError: for sets whose rows cannot be paired.
        """
        if pairs is not None:
            return PairBatches(pairs=pairs, batch_size=batch_size, seed=seed)
        starts = self.data.training_batches(batch_size, seed, labels=labels)
        return CoupledBatches(
            starts=starts,
            ends=self._ends(starts, batch_size, seed),
            coupling=self.coupling,
            seed=seed,
        )

    def _ends(self, starts: Batches, batch_size: int, seed: int) -> Any:
        if self.operator is not None:
            return MappedBatches(starts=starts, function=self.degraded)
        if self.other is None:
            return NormalBatches(shape=self.data.shape, batch_size=batch_size, seed=seed)
        self.check_rows()
        self.check_counts(len(self.data.splits.train), len(self.other.splits.train))
        seed = seed_of_other(seed, paired=self.coupling.paired)
        return self.other.training_batches(batch_size, seed, labels=False)

    def check_counts(self, ours: int, theirs: int) -> None:
        """Raise ConfigError unless so many training rows of both sets can be paired."""
        if self.coupling.paired and ours != theirs:
            raise ConfigError(
                f"config.coupling.name={self.name!r} needs as many rows in both data sets, but "
                f"config.data.name={self.sets[0]!r} has {ours} for training and "
                f"{FIELD}={self.sets[1]!r} {theirs}; give pairs in the same order, or choose "
                "config.coupling.name=independent"
            )

    def degraded(self, x0: Float[Any, "batch ..."]) -> Array:
        """Return A^+ A x0, what a measurement leaves of images."""
        assert self.operator is not None
        x0 = jnp.asarray(x0)
        return self.operator.pseudo_inverse(self.operator(x0))

    def check_rows(self) -> None:
        """Read both data sets.

        Raises:
            ConfigError: if they cannot be read, or have rows of different shapes.
        """
        if self.other is not None:
            with _of_the_other(self.other):
                _ = self.other.splits

    def starts(
        self, indices: Sequence[int] | np.ndarray, seed: int
    ) -> Float[Array, "batch ..."] | None:
        """Return random test rows as the ends where samples start; None for noise.

        That of sample k depends on the seed and k alone.
        """
        given = self.given
        if given is None:
            return None
        self.check_rows()
        count = len(given.splits.test)
        rows = [_random_row(seed, int(index), count) for index in indices]
        return self.rows("test", np.array(rows), seed)

    def rows(
        self, split: str, rows: Sequence[int] | np.ndarray, seed: int
    ) -> Float[Array, "batch ..."]:
        """Return ends from some rows of a split, split over the devices."""
        given = self.given
        assert given is not None
        stored = getattr(given.splits, split)
        placed = given.parallel.split_rows(np.asarray(rows))
        x = given.batch(stored, placed, seed=seed, draw=0)
        return x if self.operator is None else self.degraded(x)


def _random_row(seed: int, index: int, count: int) -> int:
    sequence = np.random.SeedSequence(seed, spawn_key=(PRIOR, index))
    return int(sequence.generate_state(1, np.uint64)[0] % count)


def build_ends(reader: Reader, sde: SDE, data: Data) -> Ends:
    """Return the ends that config.coupling describes.

    Raises:
        ConfigError: for the first field that is wrong.
    """
    kind = reader.lookup("coupling", COUPLINGS)
    measurement = reader.config["coupling"]["measurement"]
    classes: tuple[type, ...] = (EndOptions, kind)
    if measurement:
        with config_errors("coupling"):
            require_choice("measurement", measurement, measurements())
        classes = (*classes, measurements()[measurement])
    built = reader.build_all(
        "coupling", classes, ignore={"name"}, fixed={"diffusion": sde.diffusion}
    )
    options, coupling = built[EndOptions], built[kind]
    operator = None
    if measurement:
        data.kind.require_images(f"config.coupling.measurement={measurement!r}", "leave it out")
        with config_errors("coupling"):
            operator = built[measurements()[measurement]].operator(data.shape)
    name = reader.config["coupling"]["name"]
    if coupling.paired and not (options.data or options.measurement):
        raise ConfigError(
            f"config.coupling.name={name!r} needs the data set of the other ends; give "
            f"{FIELD}=FILE, or config.coupling.measurement=super_resolve"
        )
    if operator is not None and not coupling.paired:
        raise ConfigError(
            f"config.coupling.measurement={measurement!r} pairs each image with its own "
            f"measurement; give config.coupling.name=paired, not {name!r}"
        )
    return Ends(
        name=name,
        coupling=coupling,
        data=data,
        other=_other_data(options.data, data) if options.data else None,
        operator=operator,
        diffusion=float(sde.diffusion),
    )


def measurements() -> dict[str, type[Measurement]]:
    """Return the measurements of TASKS by name."""
    last = {name: classes[-1] for name, classes in TASKS.items() if classes}
    return {name: each for name, each in last.items() if issubclass(each, Measurement)}


def _other_data(name: str, data: Data) -> Data:
    """Return the data set of the other ends, in the units of the first.

    Raises:
        ConfigError: if it has rows of another kind or shape.
    """
    with config_errors("coupling"):
        kind = kind_of(name)
    if kind not in ("images", data.kind.name):  # a file that is missing counts as images
        raise ConfigError(
            f"{FIELD}={name!r} holds {kind}, but config.data.name={data.options.name!r} holds "
            f"{data.kind.name}; give two data sets of one kind"
        )
    given: dict[str, Any] = {"name": name}
    if not data.kind.quantized:
        scaler: Any = data.scaler
        given |= {"shape": (), "mean": scaler.mean, "std": scaler.std}
    other = dataclasses.replace(data, options=dataclasses.replace(data.options, **given))
    with _of_the_other(other):
        theirs = other.shape
    if theirs != data.shape:
        raise ConfigError(
            f"{FIELD}={name!r} has rows of shape {theirs}, but config.data.name="
            f"{data.options.name!r} has {data.shape}; give two data sets of one shape"
        )
    return other


@contextlib.contextmanager
def _of_the_other(other: Data) -> Iterator[None]:
    """Turn errors about config.data into errors about config.coupling.data."""
    try:
        yield
    except ValueError as error:  # a ConfigError is one
        text = str(error).replace("config.data.name", FIELD)
        if FIELD not in text:
            text = text.replace(f"name={other.options.name!r}", f"{FIELD}={other.options.name!r}")
        if FIELD not in text:
            text = f"{FIELD}={other.options.name!r}: {text}"
        raise ConfigError(text) from error
