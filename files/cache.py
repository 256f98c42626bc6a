"""The user's cache folder: what can be made again, and is deleted at any time without loss."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return XDG_CACHE_HOME/scoresde, or ~/.cache/scoresde; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scoresde"
