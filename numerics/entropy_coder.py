"""An entropy coder as a stack, with normal distributions on whole numbers.

The coder is an asymmetric numeral system (Duda 2009, arXiv:0902.0271), of the library
`constriction`. What is written last is read first.
"""

import importlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64, UInt32

from errors import CodecError

Words = UInt32[np.ndarray, "_"]
Numbers = Float64[np.ndarray, "dims"]
Whole = Int64[np.ndarray, "dims"]

WORD_BITS = 32
STATE = 2  # words of the coder's state
_HALF_WORD = 2**16


class Stack:
    """The code of a lane while it is written or read.

    Args:
        words: from bottom to top; the last is not zero.
    """

    def __init__(self, words: Words) -> None:
        self._coder = library().stack.AnsCoder(np.ascontiguousarray(words))

    @property
    def words(self) -> Words:
        """The words from bottom to top."""
        return self._coder.get_compressed()

    @property
    def is_spent(self) -> bool:
        """Whether what was read last may have been incomplete."""
        return self._coder.num_words() <= STATE

    def read(self, family: Any, *parameters: Any) -> Whole:
        """Return symbols by their probabilities; this takes their bits from the top."""
        return self._coder.decode(family, *parameters).astype(np.int64)

    def write(self, value: Whole, family: Any, *parameters: Any) -> None:
        """Put symbols on top, so that `read` returns them."""
        self._coder.encode_reverse(value.astype(np.int32), family, *parameters)

    def mix(self, count: int, image: int, step: int) -> None:
        """Mix `count` words with random bits that depend on image and step; twice is not at all."""
        words = self.words
        count = min(count, len(words) - 1)  # the last must not become zero
        words[-1 - count : -1] ^= random_words(count, image, step)[::-1]
        self._coder = library().stack.AnsCoder(words)


@dataclass(frozen=True, kw_only=True)
class Bins:
    """Normal distributions on whole numbers of bins.

    Attributes:
        width: of a bin.
        window: bins on either side of the mean.
        escapes: whether what is beyond is counted in plain bits, or has no mass.
    """

    width: float
    window: int
    escapes: bool

    def read(self, stack: Stack, mean: Numbers, std: Numbers | float) -> Whole:
        """Return bins by their probabilities; this takes their bits from the stack."""
        center, *parameters = self._parameters(mean, std)
        bins = stack.read(self._family, *parameters)
        if self.escapes:
            half = library().model.Uniform(_HALF_WORD)
            for place in np.flatnonzero(np.abs(bins) == self.window)[::-1]:
                high, low = (int(stack.read(half, 1)[0]) for _ in range(2))
                bins[place] += np.sign(bins[place]) * (high * _HALF_WORD + low)
        return center + bins

    def write(self, stack: Stack, value: Whole, mean: Numbers, std: Numbers | float) -> None:
        """Put bins on the stack, so that `read` returns them."""
        center, *parameters = self._parameters(mean, std)
        bins = value - center
        inside = np.clip(bins, -self.window, self.window)
        if self.escapes:
            half = library().model.Uniform(_HALF_WORD)
            for place in np.flatnonzero(np.abs(inside) == self.window):
                excess = abs(int(bins[place] - inside[place]))
                for number in (excess % _HALF_WORD, excess // _HALF_WORD):
                    stack.write(np.array([number]), half)
        stack.write(inside, self._family, *parameters)

    def _parameters(self, mean: Numbers, std: Numbers | float) -> tuple[Whole, Numbers, Numbers]:
        """Return the bin of the mean, the mean's place in it, and the deviation, in bins."""
        center = np.rint(mean / self.width)
        place = mean / self.width - center
        return center.astype(np.int64), place, np.full_like(place, std / self.width)

    @cached_property
    def _family(self) -> Any:
        return library().model.QuantizedGaussian(-self.window, self.window)


class Levels:
    """Gray levels by normal distributions, whose tails are at the lowest and the highest level."""

    def __init__(self, count: int) -> None:
        self._family = library().model.QuantizedGaussian(0, count - 1)

    def read(self, stack: Stack, mean: Numbers, std: Numbers) -> Whole:
        """Return gray levels by their probabilities, as `Bins.read`."""
        return stack.read(self._family, mean, std)

    def write(self, stack: Stack, value: Whole, mean: Numbers, std: Numbers) -> None:
        """Put gray levels on the stack, as `Bins.write`."""
        stack.write(value, self._family, mean, std)


def random_words(count: int, first: int, second: int) -> Words:
    """Return pseudo-random words that depend on two numbers alone, on every machine."""
    key = np.array([first, second], np.uint64)
    return np.random.Philox(key=key).random_raw(-(-count // 2)).view(np.uint32)[:count]


def library() -> Any:
    """Return the streams of the library `constriction`."""
    try:
        constriction: Any = importlib.import_module("constriction")
    except ImportError as error:
        raise CodecError(
            "compression needs a package that is not installed; run: pip install constriction"
        ) from error
    return constriction.stream
