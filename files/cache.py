"""The user's cache folder: what can be made again, and is deleted at any time without loss."""

import glob
import os
import re
import warnings
from pathlib import Path
from typing import Any

_UNREADABLE = re.compile(r"Error reading persistent compilation cache entry for '(.+?)'")


def cache_folder() -> Path:
    """Return XDG_CACHE_HOME/scoresde, or ~/.cache/scoresde; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scoresde"


def replace_unreadable_programs(folder: Path) -> None:
    """From now on, delete compiled programs that JAX cannot read, so that it writes them again.

    A kill or a power cut while JAX writes one leaves a part of it. JAX would never replace that
    part, and would warn of it at each start. The warning has no more than the program's name, so
    all of that name are deleted.
    """
    show = warnings.showwarning

    def show_or_delete(message: Warning | str, *more: Any, **named: Any) -> None:
        found = _UNREADABLE.match(str(message))
        parts = list(folder.glob(f"{glob.escape(found[1])}-*")) if found else []
        try:
            for part in parts:
                part.unlink(missing_ok=True)
        except OSError:  # such as a cache that another user owns
            parts = []
        if not parts:
            show(message, *more, **named)

    warnings.showwarning = show_or_delete
