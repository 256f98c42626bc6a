r"""Time grids: the times at which a sampler evaluates the network, and its final step.

A grid is data: decreasing times t_0 > t_1 > ... > t_N in [0, 1], from the prior to nearly the data.
With u = 0, 1/N, ..., 1 and s(t) = sigma(t) / alpha(t),

    uniform     t = 1 + (t_min - 1) u
    quadratic   sqrt(t) = 1 + (sqrt(t_min) - 1) u                       DDIM's for CIFAR-10
    log_snr     log s linear in u                                       DPM-Solver, arXiv:2206.00927
    karras      s^(1/rho) linear in u                                   EDM, arXiv:2206.00364, Eq. 5

A chain of n timesteps has timestep i at t = i / (n - 1). "timesteps" is all of them. "ddim50" is
every k-th from 0 up, with k such that 50 are kept. "10,15,20" keeps 10 of the first third of the
chain, 15 of the second and 20 of the last (Nichol and Dhariwal 2021, arXiv:2102.09672, Section 4).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from errors import require_choice, require_in
from numerics.arrays import in_float64
from sde_lib import SDE


def _uniform(sde: SDE, u: np.ndarray, t_min: float, rho: float) -> np.ndarray:
    return 1 + (t_min - 1) * u


def _quadratic(sde: SDE, u: np.ndarray, t_min: float, rho: float) -> np.ndarray:
    return (1 + (np.sqrt(t_min) - 1) * u) ** 2


def _log_snr(sde: SDE, u: np.ndarray, t_min: float, rho: float) -> np.ndarray:
    low, high = in_float64(sde.log_snr, np.array([1.0, t_min]))
    inner = in_float64(sde.time_of_log_snr, low + (high - low) * u[1:-1])
    return np.concatenate([[1.0], inner, [t_min]])


def _karras(sde: SDE, u: np.ndarray, t_min: float, rho: float) -> np.ndarray:
    # s = exp(-log_snr / 2), so s^(1/rho) = exp(-log_snr / (2 rho)).
    high, low = np.exp(in_float64(sde.log_snr, np.array([1.0, t_min])) / (-2 * rho))
    inner = in_float64(sde.time_of_log_snr, -2 * rho * np.log(high + (low - high) * u[1:-1]))
    return np.concatenate([[1.0], inner, [t_min]])


# name -> (process, u, t_min, rho) -> times
TIME_GRIDS: dict[str, Callable[[SDE, np.ndarray, float, float], np.ndarray]] = {
    "uniform": _uniform,
    "quadratic": _quadratic,
    "log_snr": _log_snr,
    "karras": _karras,
}

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
        rho: exponent of the karras grid, by default 7; larger has shorter steps near t_min.
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
        require_in("steps", self.steps, "[1, inf)")
        require_in("t_min", self.t_min, "(0, 1)")
        if not self.t_min < self.start <= 1:
            raise ValueError(f"start={self.start} must be above t_min={self.t_min}, at most 1")
        require_in("rho", self.rho, "(0, inf)")
        if self.rho is not None and self.grid != "karras":
            raise ValueError(f"rho={self.rho} is used with grid='karras', not with {self.grid!r}")

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
        """Return the strictly decreasing times of this schedule for a process, in float64.

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
        steps = self.steps or 1000
        rho = 7.0 if self.rho is None else self.rho
        return TIME_GRIDS[self.grid](sde, np.linspace(0, 1, steps + 1), self.t_min, rho)
