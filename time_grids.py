r"""Time grids: the times at which a sampler evaluates the network, and its final step.

A grid is data: decreasing times t_0 > t_1 > ... > t_N in [0, 1], from the prior to nearly the data.
With u = 0, 1/N, ..., 1 and s(t) = sigma(t) / alpha(t),

    uniform     t = 1 + (t_min - 1) u
    quadratic   sqrt(t) = 1 + (sqrt(t_min) - 1) u                       DDIM's for CIFAR-10
    log_snr     log s linear in u                                       DPM-Solver, arXiv:2206.00927
    karras      s^(1/rho) linear in u                                   EDM, arXiv:2206.00364, Eq. 5
    polyexponential   log s linear in (1 - u)^rho                       k-diffusion
    vp_time     linear in the time of the VP process with the same
                noise at both ends, from 1 to 1e-3                      EDM, Table 1, column VP
    iddpm       rounded to the levels of the cosine chain               EDM, Table 1, column iDDPM

With rho = 1, karras is linear in s, and polyexponential is log_snr, which is also EDM's column VE.

A chain of n timesteps has timestep i at t = i / (n - 1). "timesteps" is all of them. "ddim50" is
every k-th from 0 up, with k such that 50 are kept. "10,15,20" keeps 10 of the first third of the
chain, 15 of the second and 20 of the last (Nichol and Dhariwal 2021, arXiv:2102.09672, Section 4).
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from errors import require_choice, require_in
from numerics.arrays import in_float64
from sde_lib import BETAS, SDE


def _uniform(sde: SDE, u: np.ndarray, t_min: float, rho: float) -> np.ndarray:
    return 1 + (t_min - 1) * u


def _quadratic(sde: SDE, u: np.ndarray, t_min: float, rho: float) -> np.ndarray:
    return (1 + (np.sqrt(t_min) - 1) * u) ** 2


def _log_snr(sde: SDE, u: np.ndarray, t_min: float, rho: float) -> np.ndarray:
    return _polyexponential(sde, u, t_min, 1.0)


def _polyexponential(sde: SDE, u: np.ndarray, t_min: float, rho: float) -> np.ndarray:
    low, high = in_float64(sde.log_snr, np.array([1.0, t_min]))
    fraction = u if rho == 1 else 1 - (1 - u) ** rho
    return _with_ends(sde, low + (high - low) * fraction[1:-1], t_min)


def _karras(sde: SDE, u: np.ndarray, t_min: float, rho: float) -> np.ndarray:
    # s = exp(-log_snr / 2), so s^(1/rho) = exp(-log_snr / (2 rho)).
    high, low = np.exp(in_float64(sde.log_snr, np.array([1.0, t_min])) / (-2 * rho))
    return _with_ends(sde, -2 * rho * np.log(high + (low - high) * u[1:-1]), t_min)


def _vp_time(sde: SDE, u: np.ndarray, t_min: float, rho: float) -> np.ndarray:
    largest, smallest = noise_levels(sde, np.array([1.0, t_min]))
    vp = VPTime.fit(largest, smallest)
    return _with_ends(sde, -2 * np.log(vp.noise(1 + (vp.end - 1) * u[1:-1])), t_min)


def _iddpm(sde: SDE, u: np.ndarray, t_min: float, rho: float) -> np.ndarray:
    # Of the chain, 1 + s^2 = 1 / prod (1 - beta). Its timesteps are 1000, as EDM's.
    levels = np.sqrt(np.expm1(-np.cumsum(np.log1p(-BETAS["cosine"](1000)))))[::-1]
    largest, smallest = noise_levels(sde, np.array([1.0, t_min]))
    # The ends count as levels, without copies that differ by rounding.
    between = (levels < largest * (1 - 1e-6)) & (levels > smallest * (1 + 1e-6))
    levels = np.concatenate([[largest], levels[between], [smallest]])
    kept = np.rint((len(levels) - 1) * u).astype(int)
    return _with_ends(sde, -2 * np.log(levels[kept[1:-1]]), t_min)


def _with_ends(sde: SDE, log_snr: np.ndarray, t_min: float) -> np.ndarray:
    """Return the times with this log-SNR, between the exact ends 1 and t_min."""
    return np.concatenate([[1.0], in_float64(sde.time_of_log_snr, log_snr), [t_min]])


def noise_levels(sde: SDE, times: np.ndarray) -> np.ndarray:
    """Return s = sigma / alpha at these times, in float64."""
    return np.exp(-in_float64(sde.log_snr, times) / 2)


class VPTime(NamedTuple):
    """The time of a VP process, as a function of the noise level s = sigma / alpha.

    log(1 + s^2) = slope t^2 / 2 + start t, with beta(t) = start + slope t (EDM, Table 1). Methods
    take numbers or NumPy arrays.
    """

    start: float
    slope: float
    end = 1e-3  # EDM's epsilon_s, the time of the smallest noise

    @classmethod
    def fit(cls, largest: float, smallest: float) -> "VPTime":
        """Return the time that is 1 at the largest level, and `end` at the smallest.

        Raises:
            ValueError: if there is no such process, because the smallest level is too large.
        """
        high, low = np.log1p(np.square([largest, smallest]))
        slope = 2 * (low / cls.end - high) / (cls.end - 1)
        fitted = cls(high - slope / 2, slope)
        if not min(fitted.start + slope * cls.end, fitted.start + slope) > 0:
            raise ValueError(
                f"vp_time fits no VP process to noise levels sigma/alpha from {largest:.4g} to "
                f"{smallest:.4g}; choose a smaller t_min, or something other than vp_time"
            )
        return fitted

    def noise(self, t: Any) -> Any:
        """Return s at time t."""
        return np.sqrt(np.expm1(self.slope * t**2 / 2 + self.start * t))

    def of(self, s: Any) -> Any:
        """Return the time of the level s."""
        total = np.log1p(s**2)
        root = np.sqrt(self.start**2 + 2 * self.slope * total)
        # The same solution of the quadratic equation, without its cancellation.
        if self.start > 0:
            return 2 * total / (root + self.start)
        return (root - self.start) / self.slope

    def derivative(self, s: Any) -> Any:
        """Return ds/dt at the level s."""
        return (self.start + self.slope * self.of(s)) * (s + 1 / s) / 2


class Grid(NamedTuple):
    """A row of TIME_GRIDS.

    Attributes:
        times: the map (process, u, t_min, rho) -> times.
        rho: default of `Schedule.rho`; None for a grid that does not use it.
    """

    times: Callable[[SDE, np.ndarray, float, float], np.ndarray]
    rho: float | None = None


TIME_GRIDS = {
    "uniform": Grid(_uniform),
    "quadratic": Grid(_quadratic),
    "log_snr": Grid(_log_snr),
    "karras": Grid(_karras, rho=7.0),
    "polyexponential": Grid(_polyexponential, rho=1.0),
    "vp_time": Grid(_vp_time),
    "iddpm": Grid(_iddpm),
}

_DEFAULT_STEPS = 1000
_RESPACING = re.compile(r"ddim(\d+)|\d+(,\d+)*")


def respaced_timesteps(count: int, respacing: str) -> np.ndarray:
    """Return the timesteps of a chain that "ddim50" or "10,15,20" keeps, increasing from 0.

    Raises:
        ValueError: if a chain of `count` timesteps cannot be respaced so.
    """
    if respacing.startswith("ddim"):
        wanted = int(respacing.removeprefix("ddim"))
        for stride in range(1, count):
            kept = np.arange(0, count, stride)
            if len(kept) == wanted:
                return kept
        if not 2 <= wanted <= count:
            raise ValueError(f"grid={respacing!r}: the chain has {count} timesteps, keep 2 or more")
        raise ValueError(
            f"grid={respacing!r}: no integer stride keeps {wanted} of {count} timesteps; "
            f"'{wanted}' spaces them as evenly as integers allow"
        )
    kept, start, counts = [], 0, [int(number) for number in respacing.split(",")]
    for section, number in enumerate(counts):
        size = count // len(counts) + (section < count % len(counts))
        if not 1 <= number <= size:
            raise ValueError(
                f"grid={respacing!r}: section {section + 1} has {size} timesteps, cannot keep "
                f"{number}"
            )
        # Evenly from the section's first timestep to its last; a single one is the first. The
        # strides are added up one by one, because the published chains round their ties so.
        stride = (size - 1) / max(number - 1, 1)
        kept.append(start + np.rint(np.cumsum([0.0] + [stride] * (number - 1))))
        start += size
    return np.concatenate(kept).astype(int)


# The value returned at t_min. "denoise" is Tweedie's estimate of x0, one more network evaluation at
# t_min: it removes the noise. "mean" is the state without the fresh noise of the last step. The
# score of that step was taken before t_min, so much of the noise at t_min is left. "none" is the
# noisy state itself. The noise removal of Song et al. is the mean of a step that starts at t_min:
# it is "denoise" here, up to their discretization of that step.
FINAL_STEPS = ("mean", "denoise", "none")


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """The times of a sampler, and its final step.

    Args:
        grid: spacing of the times, a name in TIME_GRIDS; or timesteps of a chain: "timesteps" for
            all of them, or a respacing such as "ddim50" or "10,15,20". Timesteps end at timestep 0
            whatever t_min; the step from there to the data is final_step="denoise".
        times: the times themselves, from 1 down, instead of a grid; the last one replaces t_min.
        steps: number of steps from t = 1 to t_min, by default 1000, or as times or a respacing say;
            of "timesteps" the number of timesteps, by default all.
        start: where sampling starts; below 1, at noised images (`source` of `sampling.sample`),
            from where it follows the rest of the grid.
        t_min: where sampling stops; Song et al. take 1e-3 for VP and sub-VP, 1e-5 for VE.
        rho: exponent of the grids karras (by default 7) and polyexponential (by default 1); larger
            has shorter steps near t_min.
        final_step: the value returned at t_min, a name in FINAL_STEPS; by default "denoise", which
            leaves no noise in the samples.

    Raises:
        ValueError: for an unknown name or a number out of range.
    """

    grid: str = "uniform"
    times: tuple[float, ...] = ()
    steps: int | None = None
    start: float = 1.0
    t_min: float = 1e-3
    rho: float | None = None
    final_step: str = "denoise"

    def __post_init__(self) -> None:
        if self.grid not in TIME_GRIDS and self.grid != "timesteps" and not self._respaced:
            names = ", ".join(sorted((*TIME_GRIDS, "timesteps")))
            raise ValueError(
                f"grid={self.grid!r} is unknown; choose one of: {names}, ddim<count>, or counts "
                "such as 10,15,20"
            )
        require_choice("final_step", self.final_step, FINAL_STEPS)
        if self.times:
            self._check_times()
        require_in("steps", self.steps, "[1, 1000000]")
        if isinstance(self.steps, float):
            raise ValueError(f"steps={self.steps} must be an integer")
        require_in("t_min", self.t_min, "(0, 1)")
        if not self.t_min < self.start <= 1:
            raise ValueError(f"start={self.start} must be above t_min={self.t_min}, at most 1")
        require_in("rho", self.rho, "(0, inf)")
        with_rho = [name for name, row in TIME_GRIDS.items() if row.rho is not None]
        if self.rho is not None and self.grid not in with_rho:
            raise ValueError(
                f"rho={self.rho} is used with grid={' or '.join(map(repr, with_rho))}, not with "
                f"{self.grid!r}"
            )

    @property
    def _respaced(self) -> bool:
        return bool(_RESPACING.fullmatch(self.grid))

    def _check_times(self) -> None:
        if self.grid != "uniform":
            raise ValueError(f"times are given, so grid={self.grid!r} has no meaning; leave it out")
        if len(self.times) < 2:
            raise ValueError(f"times={self.times}: give at least two, from 1 to the final time")
        if self.times[0] != 1:
            raise ValueError(f"times={self.times}: the first must be 1, where the prior is")
        for before, after in zip(self.times, self.times[1:], strict=False):
            if not after < before:
                raise ValueError(f"times: {after} follows {before}; they must strictly decrease")
        if not self.times[-1] >= 0:
            raise ValueError(f"times={self.times}: the last must not be below 0")

    def of(self, sde: SDE) -> np.ndarray:
        """Return the strictly decreasing times (n + 1,) of the schedule's n steps, in float64.

        Args:
            sde: the process.

        Raises:
            ValueError: if there are so many steps that neighboring times are equal in float32, or
                the process has no such grid.
        """
        times = self._times_of(sde)
        steps = len(times) - 1
        if self.steps not in (None, steps + (self.grid == "timesteps")):
            raise ValueError(f"steps={self.steps}, but the grid has {steps}; leave steps out")
        if self.start < 1:
            times = self._rest_of(times)
        if times[-1] == 0 and not in_float64(sde.sigma, 0.0) > 0:
            raise ValueError(
                f"{'times end' if self.times else f'grid={self.grid!r} ends'} at t = 0, where this "
                "process has no noise"
            )
        if not np.all(np.diff(times.astype(np.float32)) < 0):
            raise ValueError(f"steps={steps}: times coincide on this grid; use fewer steps")
        return times

    def count(self, sde: SDE) -> int:
        """Return the number of steps of the schedule.

        A named grid need not be computed for it, which every start would wait for.

        Raises:
            ValueError: as `of`, for other grids.
        """
        if self.grid in TIME_GRIDS and not self.times and self.start == 1:
            return self.steps or _DEFAULT_STEPS
        return len(self.of(sde)) - 1

    def _rest_of(self, times: np.ndarray) -> np.ndarray:
        """Return the times from `start` on; of a chain, from its first timestep there."""
        rest = times[times <= self.start]
        is_chain = self.grid == "timesteps" or self._respaced
        if not is_chain and (not len(rest) or rest[0] < self.start):
            rest = np.append(self.start, rest)
        if len(rest) < 2:
            raise ValueError(f"start={self.start} leaves nothing of the grid; choose a larger one")
        return rest

    def _times_of(self, sde: SDE) -> np.ndarray:
        if self.times:
            return np.array(self.times, np.float64)
        if self._respaced:
            count = getattr(sde, "num_timesteps", None)
            if not count:
                raise ValueError(
                    f"grid={self.grid!r} respaces a chain, but this process has no timesteps; "
                    f"choose one of: {', '.join(sorted(TIME_GRIDS))}"
                )
            kept = respaced_timesteps(count, self.grid)
            if len(kept) < 2:
                raise ValueError(f"grid={self.grid!r} keeps one timestep; keep at least two")
            return kept[::-1] / (count - 1)
        if self.grid == "timesteps":
            steps = self.steps or getattr(sde, "num_timesteps", 1000)
            if steps < 2:
                raise ValueError(f"steps={steps} must be at least 2 for grid='timesteps'")
            return np.linspace(1, 0, steps)
        steps = self.steps or _DEFAULT_STEPS
        times, default = TIME_GRIDS[self.grid]
        rho = self.rho or default or math.nan
        return times(sde, np.linspace(0, 1, steps + 1), self.t_min, rho)
