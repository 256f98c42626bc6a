"""What an evaluation hands on: results, and the numbers of single images behind them."""

from typing import Any, NamedTuple

import numpy as np

# The parts of a protocol that every number depends on.
WHAT_IS_JUDGED = ("checkpoint", "data.", "denoiser.", "images.", "model.", "sde.")


class Report(NamedTuple):
    """What goes into the results, and the numbers of each image behind it."""

    summary: dict[str, Any]
    per_image: dict[str, np.ndarray]
