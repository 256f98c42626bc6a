r"""Couplings: which end x1 belongs to each x0 of a batch.

A coupling is a joint distribution of (x0, x1). Its marginals stay those of the two data sets, or of
data and noise. What it changes is which pairs a network sees in training.

    independent    all pairs alike
    minibatch_ot   those of optimal transport between the rows of a batch (Tong et al. 2023,
                   arXiv:2302.00482; Pooladian et al. 2023, arXiv:2304.14772)
    paired         rows with the same index belong together
    reference      x1 = x0 + g z, the reference process of a Schroedinger bridge, with which
                   iterative proportional fitting starts
    simulated      pairs (x0, x1) of another run: its samples x0 and where they started

Batch k is a function of (seed, k), and the whole batch decides who belongs together. So parts of a
batch, for several hosts, are parts of the same pairs.
"""

import abc
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Int32

from data.batches import COUPLING, PRIOR, Order
from errors import require_in
from numerics.transport import assignment, entropic_plan, require_ott, squared_distances

Rows = Float[np.ndarray, "batch ..."]
_REGULARIZATION = 0.02  # of the mean squared distance
_OTHER_SEED = 0x9E3779B9  # of the order of the second data set, where rows are not paired


@runtime_checkable
class Stream(Protocol):
    """Batches of rows as a function of the step."""

    def at(self, step: int, rows: slice = slice(None)) -> Rows: ...

    def labels_at(self, step: int, rows: slice = slice(None)) -> Int32[np.ndarray, " rows"]: ...

    def close(self) -> None: ...


class Coupling(abc.ABC):
    """Base of the couplings.

    Attributes:
        paired: whether rows with the same index belong together, so that both sets are read in one
            order.
        simulates: whether pairs come from another run.
    """

    paired: ClassVar[bool] = False
    simulates: ClassVar[bool] = False

    @abc.abstractmethod
    def ends(self, x0: Rows, x1: Rows, rng: np.random.Generator) -> Rows:
        """Return the end of each row of x0, from the rows x1 of the other set."""


@dataclass(frozen=True, kw_only=True)
class Independent(Coupling):
    """All pairs are equally likely."""

    def ends(self, x0: Rows, x1: Rows, rng: np.random.Generator) -> Rows:
        """Return x1, which was drawn without regard to x0."""
        return x1


@dataclass(frozen=True, kw_only=True)
class MinibatchOT(Coupling):
    """Pairs by optimal transport between the rows of a batch, for the squared distance.

    Args:
        regularization: entropic, over the mean squared distance of the batch; 0 for the exact
            assignment. By default 0.02, or for Brownian bridges what their Schroedinger bridge has,
            2 diffusion^2.
        diffusion: of these bridges.

    Raises:
        ValueError: for a number out of range, or without ott-jax unless it is 0.
    """

    regularization: float | None = None
    diffusion: float = 0.0

    def __post_init__(self) -> None:
        require_in("regularization", self.regularization, "[0, inf)")
        if self.regularization != 0:
            require_ott("name='minibatch_ot'", "set config.coupling.regularization=0")

    def ends(self, x0: Rows, x1: Rows, rng: np.random.Generator) -> Rows:
        """Return an end for each x0, drawn from the plan."""
        x, y = x0.reshape(len(x0), -1), x1.reshape(len(x1), -1)
        if self.regularization == 0:
            return x1[assignment(x, y)]
        if self.regularization is None and self.diffusion:
            epsilon = 2 * self.diffusion**2
        else:
            share = _REGULARIZATION if self.regularization is None else self.regularization
            epsilon = share * float(squared_distances(x, y).mean())
        cumulative = entropic_plan(x, y, epsilon).cumsum(axis=1) * len(x0)
        chosen = (cumulative < rng.random((len(x0), 1))).sum(axis=1)
        return x1[np.minimum(chosen, len(x1) - 1)]


@dataclass(frozen=True, kw_only=True)
class Paired(Coupling):
    """Rows with the same index belong together."""

    paired: ClassVar[bool] = True

    def ends(self, x0: Rows, x1: Rows, rng: np.random.Generator) -> Rows:
        """Return x1, which was read in the order of x0."""
        return x1


@dataclass(frozen=True, kw_only=True)
class Reference(Coupling):
    """Ends of a Brownian motion that starts at x0.

    Args:
        diffusion: of the motion, over unit time.

    Raises:
        ValueError: for no diffusion.
    """

    diffusion: float = 0.0

    def __post_init__(self) -> None:
        if not self.diffusion > 0:
            raise ValueError(
                "name='reference' is a Brownian motion; give config.sde.name=linear and its "
                "config.sde.diffusion above 0, such as 1.0"
            )

    def ends(self, x0: Rows, x1: Rows, rng: np.random.Generator) -> Rows:
        """Return x0 + diffusion z."""
        z = rng.standard_normal(x0.shape, np.float32)
        return x0 + np.float32(self.diffusion) * z


@dataclass(frozen=True, kw_only=True)
class Simulated(Coupling):
    """Samples of another run, and the ends where they started.

    Args:
        run: RUN or RUN:STEP, the folder of that run.
        samples: number of pairs; by default, as many as there are training rows of x1.

    Raises:
        ValueError: for no run or a number out of range.
    """

    run: str = ""
    samples: int | None = None

    simulates: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_in("samples", self.samples, "[1, inf)")
        if not self.run:
            raise ValueError(
                "name='simulated' takes its pairs from a trained run; give config.coupling.run=RUN"
            )

    def ends(self, x0: Rows, x1: Rows, rng: np.random.Generator) -> Rows:
        """Return x1, which was simulated with x0."""
        return x1


COUPLINGS: dict[str, type[Coupling]] = {
    "independent": Independent,
    "minibatch_ot": MinibatchOT,
    "paired": Paired,
    "reference": Reference,
    "simulated": Simulated,
}


def seed_of_other(seed: int, *, paired: bool) -> int:
    """Return the seed of the order of the second data set; the same for rows that are paired."""
    return seed if paired else (seed + _OTHER_SEED) % 2**32


@dataclass(frozen=True, kw_only=True, eq=False)
class NormalBatches:
    """Standard normal ends: batch k is a function of (seed, k)."""

    shape: tuple[int, ...]
    batch_size: int
    seed: int

    def at(self, step: int, rows: slice = slice(None)) -> Float32[np.ndarray, "rows ..."]:
        """Return rows `rows` of batch `step`."""
        sequence = np.random.SeedSequence(self.seed, spawn_key=(PRIOR, step))
        drawn = np.random.default_rng(sequence).standard_normal((self.batch_size, *self.shape))
        return drawn[rows].astype(np.float32)

    def close(self) -> None:
        """Do nothing: nothing is read."""


@dataclass(frozen=True, kw_only=True, eq=False)
class CoupledBatches:
    """Batches of pairs (batch, 2, ...): x0 first, then the end x1 that the coupling gives it.

    Args:
        starts: batches of x0.
        ends: batches of x1, as many rows.
        coupling: who belongs to whom.
        seed: of the coupling's own random numbers.
    """

    starts: Stream
    ends: Any
    coupling: Coupling
    seed: int

    def at(self, step: int, rows: slice = slice(None)) -> Float32[np.ndarray, "rows two ..."]:
        """Return rows `rows` of global batch `step`."""
        x0, x1 = self.starts.at(step), self.ends.at(step)
        rng = np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=(COUPLING, step)))
        return np.stack([x0, self.coupling.ends(x0, x1, rng)], axis=1)[rows]

    def labels_at(self, step: int, rows: slice = slice(None)) -> Int32[np.ndarray, " rows"]:
        """Return the classes of x0."""
        return self.starts.labels_at(step, rows)

    def close(self) -> None:
        """End the workers that read rows ahead."""
        self.starts.close()
        self.ends.close()


@dataclass(frozen=True, kw_only=True, eq=False)
class PairBatches:
    """Batches of given pairs (n, 2, ...), in the network's range, in a fresh order every epoch."""

    pairs: Float32[np.ndarray, "n two ..."]
    batch_size: int
    seed: int

    def at(self, step: int, rows: slice = slice(None)) -> Float32[np.ndarray, "rows two ..."]:
        """Return rows `rows` of global batch `step`."""
        order = Order(len(self.pairs), self.batch_size, self.seed).indices(step)
        return self.pairs[order[rows]]

    def labels_at(self, step: int, rows: slice = slice(None)) -> Int32[np.ndarray, " rows"]:
        """Raise ValueError: simulated pairs have no classes."""
        raise ValueError("simulated pairs have no classes")

    def close(self) -> None:
        """Do nothing: pairs are in memory."""


@dataclass(frozen=True, kw_only=True, eq=False)
class MappedBatches:
    """Batches of x0 under a function, for ends that are computed from their x0."""

    starts: Stream
    function: Any

    def at(self, step: int, rows: slice = slice(None)) -> Float32[np.ndarray, "rows ..."]:
        """Return the function of rows `rows` of batch `step`."""
        return np.asarray(self.function(self.starts.at(step, rows)), np.float32)

    def close(self) -> None:
        """Do nothing: the batches of x0 are closed by whoever reads them."""
