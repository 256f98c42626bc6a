"""Modules that find their parameters quickly while a network is traced.

Linen checks the shape of every parameter that it finds against that of a new one, for which it
traces the initializer each time. Here the shape that the initializer would be given is compared.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from flax import linen as nn


class ParameterModule(nn.Module):
    """A module whose parameters have initializers that take their shape first."""

    @nn.nowrap
    def param(self, name: str, init_fn: Callable[..., Any], *init_args: Any, **kwargs: Any) -> Any:
        """Return the parameter of this name, or make it, as `nn.Module.param` does."""
        if init_args and self.has_variable("params", name):
            found = self.get_variable("params", name)
            if np.shape(found) == init_args[0]:
                return found
        return super().param(name, init_fn, *init_args, **kwargs)


class Conv(ParameterModule, nn.Conv):
    """Linen's convolution."""


class Dense(ParameterModule, nn.Dense):
    """Linen's matrix product."""
