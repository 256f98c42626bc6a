r"""Lossless compression of images by a chain: bits-back coding with an entropy coder.

The chain z_0, ..., z_n is that of `bounds.discrete`, in the order of growing noise. On average, an
image takes as many bits as its bound (Townsend et al. 2019, arXiv:1901.04866). The order of the
steps is that of Bit-Swap (Kingma et al. 2019, arXiv:1905.06845):

    read z_0 by q(z_0 | x0)         write x0 by p(x0 | z_0)
    read z_i by q(z_i | z_(i-1))    write z_(i-1) by p(z_(i-1) | z_i)    for i = 1 .. n
                                    write z_n by the prior

Reading takes bits that were written before. So the first image needs random bits, those of one z.
Decoding reverses each step, in the opposite order, and gives the bits back.

The bits that are read must look random, or z is no sample of q. But where p is wrong, it writes the
same patterns again and again. So the top of the stack is mixed with pseudo-random bits (exclusive
or) before each reading.

A z is a whole number of bins, each a fraction of its standard deviation in p wide. The coder is a
stack: what is written last is read first. So the end of the code holds z_n. What is read from there
on makes a sharper and sharper preview of the image that was written last.

Several lanes code images side by side, each with a stack of its own, so that the network sees
batches.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float64, Int64, Integer

from bounds.discrete import DiscreteBoundOptions
from denoising import Denoiser
from errors import CodecError
from numerics.arrays import Batch, in_float64, whole
from numerics.entropy_coder import (
    STATE,
    WORD_BITS,
    Bins,
    Levels,
    Stack,
    Words,
    library,
    random_words,
)
from numerics.pixel_levels import PixelLevels
from objectives.variational import VARIANCES, Steps, bound_tables

Rows = Float64[np.ndarray, "images dims"]
Images = Int64[np.ndarray, "_ ..."]
Progress = Callable[[Sequence[int]], Iterable[int]]

_BINS = 16  # in a standard deviation; more would save no bits
# Standard deviations that a window holds on either side. The coder gives 2**-24 of probability to
# each bin of a window, which costs bits in wide ones, and what is beyond costs less by an escape.
_SPREAD = 10.0
_LONGEST = 2**15  # bins of a window on either side
_ENTROPY = math.sqrt(2 * math.pi * math.e)  # 2 to the entropy of a standard normal, in bits
_RANDOM_WORDS = 4  # for a dimension: many times those of one z; what is not read is not kept


class Code(NamedTuple):
    """The code of a lane.

    Attributes:
        words: its stack from bottom to top, without random words that were never read.
        unread: how many random words that are.
        random_bits: how many random bits `words` holds beside the images.
    """

    words: Words
    unread: int
    random_bits: int


@dataclass(frozen=True, kw_only=True)
class _Chain:
    """The Gaussians of a chain, in float64, by the number of z.

    Attributes:
        times: of z_0 .. z_n, growing.
        log_alpha, log_sigma: z_i = alpha_i x0 + sigma_i eps.
        prior_std: the standard deviation of z_n in the model.
    """

    times: Float64[np.ndarray, "levels"]
    log_alpha: Float64[np.ndarray, "levels"]
    log_sigma: Float64[np.ndarray, "levels"]
    prior_std: float

    @cached_property
    def scale(self) -> Float64[np.ndarray, "levels"]:
        """a of z_i = a z_(i-1) + b eps, and of z_0 = a x0 + b eps."""
        return np.exp(np.diff(self.log_alpha, prepend=0.0))

    @cached_property
    def std(self) -> Float64[np.ndarray, "levels"]:
        """b, as in `scale`."""
        gain = 2 * np.diff(self.log_alpha - self.log_sigma)  # log(SNR_t / SNR_s)
        return np.exp(self.log_sigma) * np.sqrt(-np.expm1(np.append(-np.inf, gain)))

    @cached_property
    def steps(self) -> Steps:
        """Growth and log-range of the step from each z, those of `objectives.variational`.

        For z_0, which has no step, they are 0.
        """
        gain = 2 * np.diff(self.log_sigma - self.log_alpha, prepend=np.nan)
        log_range = 2 * np.diff(self.log_sigma, prepend=np.nan)
        return Steps(self.times, np.nan_to_num(np.expm1(gain)), np.nan_to_num(log_range))

    @cached_property
    def reverse_log_std(self) -> Float64[np.ndarray, "2 levels"]:
        """Logarithms of the deviations of p(z_i | z_(i+1)) for v = 0 and v = 1."""
        log_b, steps = np.log(self.std[1:]), np.diff(self.log_sigma)
        prior = np.full((2, 1), np.log(self.prior_std))
        return np.concatenate([np.stack([log_b - steps, log_b]), prior], axis=1)

    def reverse_mean(self, i: int, z: Rows, eps: Rows) -> Rows:
        """Return the mean of p(z_(i-1) | z_i), by the predicted eps."""
        return (z - self.std[i] ** 2 * np.exp(-self.log_sigma[i]) * eps) / self.scale[i]

    def reverse_std(self, i: int, log_ratio: Rows) -> Rows:
        """Return the deviation of p(z_(i-1) | z_i), by delta of `objectives.variational`."""
        return np.exp(self.reverse_log_std[0, i - 1] + log_ratio / 2)

    @cached_property
    def forward(self) -> tuple[Bins, ...]:
        """The bins of each z in q."""
        narrowest = np.minimum(np.exp(self.reverse_log_std[0]), self.std)
        return tuple(
            Bins(width=width, window=_window(_SPREAD * std / width), escapes=False)
            for width, std in zip(narrowest / _BINS, self.std, strict=True)
        )

    @cached_property
    def backward(self) -> tuple[Bins, ...]:
        """The bins of each z in p, whose mean is off if the predicted x0 is."""
        return tuple(
            Bins(width=bins.width, window=_window(_SPREAD * std / bins.width), escapes=True)
            for bins, std in zip(self.forward, np.exp(self.reverse_log_std[1]), strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class ImageCodec:
    """A coder of images by a denoiser, along a grid of times.

    Args:
        denoiser: the model, of images without classes.
        times: two or more decreasing times, as in `bounds.discrete.discrete_bound`.
        pixel_levels: the values of pixels, in the network's range.
        options: variances of the steps.
        shape: of an image.
        lanes: how many images the network sees at a time.

    Raises:
        ValueError: for invalid times.
        CodecError: if the library `constriction` is missing.
    """

    denoiser: Denoiser
    times: Float64[np.ndarray, "times"]
    pixel_levels: PixelLevels
    options: DiscreteBoundOptions
    shape: tuple[int, ...]
    lanes: int

    def __post_init__(self) -> None:
        library()
        bound_tables(self.denoiser.sde, self.times, self.options.decoder)

    def encode(
        self, images: Integer[np.ndarray, "count *shape"], progress: Progress = iter
    ) -> list[Code]:
        """Return the codes of the lanes; image k is in lane k modulo `lanes`.

        Args:
            images: gray levels, 0 .. gray_levels - 1.
            progress: wraps the sequence of groups of images, such as tqdm does.

        Raises:
            CodecError: if the network's output is NaN or infinite.
        """
        rows = images.reshape(len(images), -1).astype(np.int64)
        stacks = [Stack(self._random(lane)) for lane in range(self.lanes)]
        # The last images first, so that the first are on top.
        for start in progress(range(0, len(rows), self.lanes)[::-1]):
            group = rows[start : start + self.lanes]
            self._write_images(stacks[: len(group)], group, start)
        return [self._code(lane, stack) for lane, stack in enumerate(stacks)]

    def decode(
        self, codes: Sequence[tuple[Words, int]], count: int, progress: Progress = iter
    ) -> Images:
        """Return the images, gray levels, of the `words` and `unread` of each lane.

        Raises:
            CodecError: if a code does not begin with its random words, so that images are wrong.
        """
        pairs = enumerate(codes)
        stacks = [Stack(np.append(self._random(k)[:n], words)) for k, (words, n) in pairs]
        groups = [
            self._read_images(stacks[: count - start], start)[0]
            for start in progress(range(0, count, self.lanes))
        ]
        for lane, stack in enumerate(stacks):
            if not np.array_equal(stack.words, self._random(lane)):
                raise CodecError("the code does not end as it began")
        return np.concatenate(groups).reshape(count, *self.shape)

    def preview(
        self, tops: Sequence[Words], count: int, progress: Progress = iter
    ) -> Iterator[Images]:
        """Yield what the tops of stacks hold, group by group: whole images, and guesses at last.

        A guess is the predicted x0, as gray levels, when the stack of its lane ends.
        """
        stacks = [Stack(words) for words in tops]
        for start in progress(range(0, count, self.lanes)):
            images, ended = self._read_images(stacks[: count - start], start)
            yield images.reshape(-1, *self.shape)
            if ended:
                return

    @cached_property
    def _chain(self) -> _Chain:
        sde, times = self.denoiser.sde, self.times[::-1]
        log_alpha, log_sigma = in_float64(lambda t: (sde.log_alpha(t), sde.log_sigma(t)), times)
        return _Chain(
            times=times,
            log_alpha=log_alpha,
            log_sigma=log_sigma,
            prior_std=float(sde.prior_std),
        )

    @cached_property
    def _decoder(self) -> tuple[float, float]:
        """Logarithms of the deviations of p(x0 | z_0), in gray levels, for v = 0 and v = 1."""
        _, ends = bound_tables(self.denoiser.sde, self.times, self.options.decoder)
        low, high = np.asarray(ends) - np.log(self.pixel_levels.spacing)
        return float(low), float(high)

    def _write_images(
        self, stacks: list[Stack], images: Int64[np.ndarray, "images dims"], start: int
    ) -> None:
        """Write an image on each stack; the first of them is image `start` of all."""
        chain, last = self._chain, len(self.times) - 1
        z, values = images, self._to_numbers(images)
        for i in range(last + 1):
            below, bins = z, chain.forward[i]
            mean = chain.scale[i] * values
            z = np.stack(
                [
                    bins.read(stack, row, chain.std[i])
                    for stack, row in zip(stacks, mean, strict=True)
                ]
            )
            values = bins.width * z
            for stack, *step in zip(stacks, below, *self._reverse(i, values)[:2], strict=True):
                self._bins_below(i).write(stack, *step)
            self._mix(stacks, start, i)
        for stack, value in zip(stacks, z, strict=True):
            chain.backward[last].write(stack, value, np.zeros(value.shape), chain.prior_std)

    def _read_images(
        self, stacks: list[Stack], start: int
    ) -> tuple[Int64[np.ndarray, "images dims"], bool]:
        """Return an image of each stack, and whether one ended before it was whole."""
        chain, last = self._chain, len(self.times) - 1
        zero, ended = np.zeros(self._dims), np.zeros(len(stacks), bool)
        guesses = np.zeros((len(stacks), zero.size), np.int64)
        z = np.stack([chain.backward[last].read(stack, zero, chain.prior_std) for stack in stacks])
        for i in range(last, -1, -1):
            values = chain.forward[i].width * np.where(ended[:, None], 0, z)
            mean, std, x0 = self._reverse(i, values)
            guesses = np.where(ended[:, None], guesses, self._to_levels(x0))
            bins = self._bins_below(i)
            self._mix(stacks, start, i)
            rows = zip(stacks, mean, std, strict=True)
            below = np.stack([bins.read(stack, *row) for stack, *row in rows])
            ended |= [stack.is_spent for stack in stacks]
            values = self._to_numbers(below) if i == 0 else chain.forward[i - 1].width * below
            for stack, value, mean in zip(stacks, z, chain.scale[i] * values, strict=True):
                chain.forward[i].write(stack, value, mean, chain.std[i])
            z = below
        return np.where(ended[:, None], guesses, z), bool(ended.any())

    def _mix(self, stacks: list[Stack], start: int, i: int) -> None:
        """Mix the words that will be read next in encoding, of z_(i+1) or another image."""
        following = (i + 1) % len(self.times)
        entropy = np.log2(
            _ENTROPY * self._chain.std[following] / self._chain.forward[following].width
        )
        count = math.ceil(1.2 * entropy * self._dims / WORD_BITS) + STATE
        for image, stack in enumerate(stacks, start):
            stack.mix(count, image, i + 1)

    def _reverse(self, i: int, values: Rows) -> tuple[Rows, Rows, Rows]:
        """Return mean and deviation of p(z_(i-1) | z_i), or for i = 0 of p(x0 | z_0), and x0.

        Those of p(x0 | z_0) are in gray levels.
        """
        chain = self._chain
        batch = np.zeros((self.lanes, *self.shape), np.float32)
        batch[: len(values)] = values.reshape(-1, *self.shape)
        step = Steps(*(np.float32(column[i]) for column in chain.steps))
        found = _predict(self.denoiser, batch, step, self.options.variance)
        x0, eps, log_ratio, fraction = (
            np.asarray(whole(part), np.float64)[: len(values)].reshape(values.shape)
            for part in found
        )
        if not np.isfinite([x0, eps, log_ratio, fraction]).all():
            raise CodecError(
                f"the network's output is NaN or infinite at t={chain.times[i]:.4g}; take another "
                "checkpoint"
            )
        if i:
            return chain.reverse_mean(i, values, eps), chain.reverse_std(i, log_ratio), x0
        low, high = self._decoder
        mean = (x0 - self.pixel_levels.low) / self.pixel_levels.spacing
        return mean, np.exp(low + fraction * (high - low)), x0

    def _bins_below(self, i: int) -> "Bins | Levels":
        """Return the bins of what is read after z_i: of z_(i-1), or of x0."""
        return self._chain.backward[i - 1] if i else Levels(self.pixel_levels.gray_levels)

    def _to_numbers(self, levels: Int64[np.ndarray, "images dims"]) -> Rows:
        return self.pixel_levels.low + self.pixel_levels.spacing * levels

    def _to_levels(self, x0: Rows) -> Int64[np.ndarray, "images dims"]:
        levels = np.rint((x0 - self.pixel_levels.low) / self.pixel_levels.spacing)
        return np.clip(levels, 0, self.pixel_levels.gray_levels - 1).astype(np.int64)

    def _random(self, lane: int) -> Words:
        """Return the random words of a lane; the last is not zero, which the coder needs."""
        return np.append(random_words(_RANDOM_WORDS * self._dims, lane, 0), np.uint32(1))

    @property
    def _dims(self) -> int:
        return math.prod(self.shape)

    def _code(self, lane: int, stack: Stack) -> Code:
        words, random = stack.words, self._random(lane)
        common = min(len(words), len(random))
        differing = np.flatnonzero(words[:common] != random[:common])
        unread = int(differing[0]) if len(differing) else common
        return Code(words[unread:], unread, WORD_BITS * (len(random) - unread))


@partial(jax.jit, static_argnames="variance")
def _predict(
    denoiser: Denoiser, z: Batch, step: Steps, variance: str
) -> tuple[Batch, Batch, Batch, Batch]:
    """Return the predicted x0 and eps, delta of the reverse step, and v of the decoder."""
    prediction, row = denoiser.predict(z, step.t), VARIANCES[variance]
    found = row.log_ratio(prediction, step.growth, step.log_range), row.fraction(prediction)
    log_ratio, fraction = (jnp.broadcast_to(jnp.asarray(part, z.dtype), z.shape) for part in found)
    return prediction.x0, prediction.eps, log_ratio, fraction


def _window(bins: float) -> int:
    return min(math.ceil(bins), _LONGEST)
