"""A trace of some training steps by `jax.profiler`, for TensorBoard or https://ui.perfetto.dev."""

import re
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax

from errors import ConfigError
from files.paths import AnyPath
from files.staging import StagedFolder


class ProfiledSteps(NamedTuple):
    """The first and the last step of a trace, counted from 1."""

    first: int
    last: int

    @classmethod
    def parse(cls, text: str) -> "ProfiledSteps":
        """Return the steps that --profile=FIRST:LAST names.

        Raises:
            ConfigError: for anything else.
        """
        match = re.fullmatch(r"(\d{1,10}):(\d{1,10})", text)
        if match and 1 <= int(match[1]) <= int(match[2]):
            return cls(int(match[1]), int(match[2]))
        raise ConfigError(
            f"--profile={text} must be FIRST:LAST, two training steps from 1 on, such as 10:15"
        )

    def check(self, done: int, steps: int) -> None:
        """Raise ConfigError unless training from step `done` to `steps` runs all of them."""
        if self.first <= done or self.last > steps:
            raise ConfigError(
                f"--profile={self.first}:{self.last} is not within the steps that are left: "
                f"{done + 1}:{steps}; choose steps among these"
            )


@dataclass
class Profiler:
    """Starts and stops the trace.

    Args:
        steps: what to trace; None for nothing.
        folder: where the trace is written.
        leads: whether this host traces; of several, the first does.
    """

    steps: ProfiledSteps | None
    folder: AnyPath
    leads: bool = True
    _staged: StagedFolder | None = None  # while the trace runs

    def is_edge(self, step: int) -> bool:
        """Return whether the trace starts or ends after this step."""
        return self.steps is not None and step in (self.steps.first - 1, self.steps.last)

    def before(self, step: int, state: Any) -> None:
        """Start the trace if `step` is its first, when the steps before have ended."""
        if self.leads and self.steps is not None and step == self.steps.first:
            jax.block_until_ready(state)
            self._staged = StagedFolder(self.folder)
            jax.profiler.start_trace(str(self._staged.path))

    def after(self, step: int, state: Any) -> None:
        """Stop the trace if `step` is its last, when it has ended."""
        if self._staged is not None and self.steps is not None and step == self.steps.last:
            jax.block_until_ready(state)
            self.close()

    def close(self) -> None:
        """Stop the trace if it runs, and print where it is."""
        if self._staged is not None:
            staged, self._staged = self._staged, None
            jax.profiler.stop_trace()
            staged.close()
            print(f"the trace is in {self.folder}; show it with TensorBoard's profile plugin")
