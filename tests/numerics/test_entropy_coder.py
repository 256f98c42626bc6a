"""The entropy coder: what is written is read, in as many bits as probabilities say."""

import numpy as np
import pytest
import scipy.stats

from numerics.entropy_coder import WORD_BITS, Bins, Levels, Stack, random_words


def full_stack(count=2000):
    return Stack(np.append(random_words(count, 1, 2), np.uint32(1)))


def bits(stack):
    return WORD_BITS * len(stack.words)


def test_bins_are_read_as_they_were_written_even_far_outside_of_the_window():
    bins = Bins(width=0.25, window=20, escapes=True)
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=50), rng.uniform(0.5, 2.0, size=50)
    value = np.rint((mean + std * rng.normal(size=50)) / bins.width).astype(np.int64)
    value[[3, 7, 8]] = [10**6, -(10**9), 12345]
    stack = full_stack()
    before = stack.words
    bins.write(stack, value, mean, std)
    np.testing.assert_array_equal(bins.read(stack, mean, std), value)
    np.testing.assert_array_equal(stack.words, before)


def test_what_is_read_from_random_bits_is_a_sample_and_writing_it_gives_them_back():
    bins = Bins(width=0.1, window=120, escapes=False)
    stack, mean = full_stack(20_000), np.linspace(-2, 2, 40_000)
    before = stack.words
    value = bins.read(stack, mean, 0.8)
    found = (bins.width * value - mean) / 0.8
    inside = (np.random.default_rng(0).random(found.size) - 0.5) * bins.width / 0.8
    assert scipy.stats.kstest(found + inside, "norm").pvalue > 1e-3
    entropy = np.log2(0.8 * np.sqrt(2 * np.pi * np.e) / bins.width)
    assert WORD_BITS * (len(before) - len(stack.words)) / 40_000 == pytest.approx(entropy, rel=0.01)
    bins.write(stack, value, mean, 0.8)
    np.testing.assert_array_equal(stack.words, before)


def test_gray_levels_take_the_bits_of_the_cells_of_a_normal_distribution():
    levels, stack = Levels(5), full_stack()
    value = np.tile(np.arange(5), 400)
    mean, std = np.full(value.size, 1.3), np.full(value.size, 0.9)
    before = bits(stack)
    levels.write(stack, value, mean, std)
    edges = scipy.stats.norm.cdf([-np.inf, 0.5, 1.5, 2.5, 3.5, np.inf], 1.3, 0.9)
    expected = -np.log2(np.diff(edges)).sum() * 400
    assert bits(stack) - before == pytest.approx(expected, abs=2 * WORD_BITS)
    np.testing.assert_array_equal(levels.read(stack, mean, std), value)


def test_mixing_twice_is_nothing_and_begins_at_the_top():
    words = full_stack(50).words
    whole, part = Stack(words), Stack(words[-10:])
    whole.mix(30, 4, 5)
    part.mix(30, 4, 5)
    assert not np.any(whole.words[-31:-1] == words[-31:-1])
    np.testing.assert_array_equal(whole.words[:-31], words[:-31])
    np.testing.assert_array_equal(part.words[1:], whole.words[-9:])
    whole.mix(30, 4, 5)
    np.testing.assert_array_equal(whole.words, words)
