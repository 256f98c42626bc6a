"""The speed of training."""

import time


class Clock:
    """Measures images per second since the last reading."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a new reading, without what has been counted."""
        self._images, self._start = 0, time.perf_counter()

    def count(self, images: int) -> None:
        """Count images that were trained on."""
        self._images += images

    def rate(self) -> float:
        """Return images per second, and begin a new reading."""
        rate = self._images / (time.perf_counter() - self._start)
        self.restart()
        return rate
