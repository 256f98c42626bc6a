"""Distances and scores against closed forms, SciPy, brute force, and simulation."""

import math
import re
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import scipy.spatial.distance
import scipy.stats

import metrics.precision_recall
from metrics.frechet import Accumulator, Statistics, frechet_distance, frechet_interval
from metrics.inception_score import inception_score
from metrics.kernel_distance import kernel_distance
from metrics.precision_recall import precision_recall

RNG_SEED = 0


def random_covariance(rng, dims):
    factor = rng.normal(size=(dims, dims))
    return factor @ factor.T + 0.1 * np.eye(dims)


def textbook(a, b):
    """The distance as Heusel et al. print it, by a general matrix square root."""
    root = scipy.linalg.sqrtm(a.covariance @ b.covariance).real
    squares = np.sum((a.mean - b.mean) ** 2)
    return squares + np.trace(a.covariance + b.covariance - 2 * root)


def normal(count, dims, *, seed=RNG_SEED):
    return np.random.default_rng(seed).normal(size=(count, dims))


def accumulated(features, *, cuts=(), groups=20):
    accumulator = Accumulator(len(features), groups=groups)
    for part in np.split(features, cuts):
        accumulator.add(part)
    return accumulator


def test_commuting_covariances_have_a_closed_form():
    a = Statistics(9, np.array([1.0, 2.0]), np.diag([4.0, 9.0]))
    b = Statistics(9, np.array([4.0, 6.0]), np.diag([1.0, 25.0]))
    # |m|^2 and the squared differences of the standard deviations
    assert frechet_distance(a, b) == pytest.approx(25 + (2 - 1) ** 2 + (3 - 5) ** 2)


@pytest.mark.parametrize("dims", [1, 3, 20])
def test_general_covariances_agree_with_the_matrix_square_root(dims):
    rng = np.random.default_rng(RNG_SEED)
    a, b = (Statistics(9, rng.normal(size=dims), random_covariance(rng, dims)) for _ in range(2))
    assert frechet_distance(a, b) == pytest.approx(textbook(a, b), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_distance_to_itself_is_zero():
    rng = np.random.default_rng(RNG_SEED)
    a = Statistics(9, rng.normal(size=10), random_covariance(rng, 10))
    assert 0 <= frechet_distance(a, a) < 1e-9


def test_distance_is_invariant_to_rotations():
    rng = np.random.default_rng(RNG_SEED)
    a, b = (Statistics(9, rng.normal(size=5), random_covariance(rng, 5)) for _ in range(2))
    rotation = scipy.stats.ortho_group.rvs(5, random_state=1)
    turn_a, turn_b = (
        Statistics(9, rotation @ s.mean, rotation @ s.covariance @ rotation.T) for s in (a, b)
    )
    assert frechet_distance(turn_a, turn_b) == pytest.approx(frechet_distance(a, b), rel=1e-9)


def test_singular_covariances_are_fine():
    line = Statistics(9, np.zeros(3), np.diag([1.0, 0.0, 0.0]))
    other = Statistics(9, np.zeros(3), np.diag([0.0, 4.0, 0.0]))
    assert frechet_distance(line, other) == pytest.approx(5)
    low_rank = accumulated(normal(4, 6)).statistics()  # rank 3 in 6 dimensions
    assert 0 <= frechet_distance(low_rank, low_rank) < 1e-6


def test_too_few_images_for_the_rank_are_noticed():
    assert accumulated(normal(6, 6)).statistics().rank_deficient
    assert not accumulated(normal(7, 6)).statistics().rank_deficient
    assert not Statistics(None, np.zeros(6), np.eye(6)).rank_deficient


def test_different_features_are_refused():
    with pytest.raises(ValueError, match="features differ in number: 2 and 3"):
        frechet_distance(
            Statistics(9, np.zeros(2), np.eye(2)), Statistics(9, np.zeros(3), np.eye(3))
        )


@pytest.mark.parametrize("count", [40, 700])
@pytest.mark.parametrize("groups", [1, 3])
def test_streamed_statistics_are_those_of_one_pass_whatever_the_batches(count, groups):
    """A block of 256 images, and the edges of groups, fall into batches in every way."""
    features = 5 + normal(count, 6)
    whole = accumulated(features, groups=groups).statistics()
    assert whole.count == count
    np.testing.assert_allclose(whole.mean, features.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance, np.cov(features.T), rtol=1e-10)
    for cuts in ([1], [7, 20], [5, 6, 6, 30], range(0, count, 13)):
        ours = accumulated(features, cuts=cuts, groups=groups).statistics()
        np.testing.assert_array_equal(ours.mean, whole.mean)
        np.testing.assert_array_equal(ours.covariance, whole.covariance)


def test_groups_are_contiguous_and_can_be_left_out():
    features = normal(23, 3)
    accumulator, edges = accumulated(features, groups=5), [0, 4, 9, 13, 18, 23]
    for group, (first, last) in enumerate(pairwise(edges)):
        kept = np.delete(features, slice(first, last), axis=0)
        ours = accumulator.statistics(without=group)
        assert ours.count == len(kept)
        np.testing.assert_allclose(ours.mean, kept.mean(axis=0), rtol=1e-12)
        np.testing.assert_allclose(ours.covariance, np.cov(kept.T), rtol=1e-10)


def test_large_means_do_not_cancel():
    """Features of mean 1e8 and variance 1: naive sums of squares would lose every digit."""
    noise = normal(50, 4)
    ours = accumulated(1e8 + noise, cuts=[10, 30]).statistics()
    np.testing.assert_allclose(ours.covariance, np.cov(noise.T), atol=1e-6)


@pytest.mark.slow
def test_many_features_have_fewer_groups():
    """Matrices of 5 groups of 8192^2 would be 2.7 GB, and are not touched before they are used."""
    for features, groups in ((2, 20), (2048, 20), (4096, 5), (8192, 5)):
        accumulator = Accumulator(100)
        accumulator.add(np.zeros((1, features), np.float32))
        assert accumulator.groups == groups


def test_images_are_counted():
    accumulator = Accumulator(10)
    accumulator.add(normal(9, 2))
    with pytest.raises(ValueError, match="total=10 images were announced, got 9"):
        accumulator.statistics()
    with pytest.raises(ValueError, match="total=10 images were announced, got 11"):
        accumulator.add(normal(2, 2))
    with pytest.raises(ValueError, match="features differ in number: 2 and 3"):
        accumulator.add(normal(1, 3))
    accumulator.add(normal(1, 2))
    assert accumulator.statistics().count == 10


@pytest.mark.parametrize("total", [0, 1])
def test_too_few_images_are_refused(total):
    with pytest.raises(ValueError, match=f"total={total} images .* at least 2"):
        Accumulator(total)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(bad):
    features = normal(30, 4)
    features[[17, 22], [0, 3]] = bad
    accumulator = Accumulator(50)
    accumulator.add(normal(20, 4))
    message = "features of 2 of 30 images are not finite, the first of image "
    with pytest.raises(ValueError, match=f"{message}37"):
        accumulator.add(features)
    for metric in (kernel_distance, precision_recall):
        with pytest.raises(ValueError, match=f"{message}17"):
            metric(normal(20, 4), features)


@pytest.mark.parametrize(
    ("dims", "count", "shift", "scale", "ratios"),
    [
        (4, 400, 0.3, 1.2, (0.8, 1.2)),
        # More bias than distance: sets drawn with replacement would give 5 times the error.
        (40, 500, 0.05, 1.05, (0.85, 1.6)),
        # Nothing but bias: sqrt(2) is Efron and Stein's.
        (4, 400, 0.0, 1.0, (1.0, 1.8)),
    ],
)
@pytest.mark.slow
def test_standard_error_interval_and_bias_are_those_of_new_samples(
    dims, count, shift, scale, ratios
):
    reference = Statistics(None, np.zeros(dims), np.eye(dims))
    truth = dims * (shift**2 + (scale - 1) ** 2)
    results = []
    for seed in range(100):
        drawn = accumulated(shift + scale * normal(count, dims, seed=seed))
        results.append(frechet_interval(drawn, reference, replicates=200))
    distances, corrected, errors, low, high = np.transpose(results)
    spread = distances.std(ddof=1)
    assert ratios[0] < math.sqrt(np.mean(errors**2)) / spread < ratios[1]
    inside = (low <= distances.mean()) & (distances.mean() <= high)
    assert inside.mean() > 0.86, "95% with infinitely many groups and sets"
    bias = distances.mean() - truth  # of 100 sets
    assert abs(corrected.mean() - truth) < 0.1 * abs(bias) + 3 * spread / 10


def test_interval_is_that_of_the_mean_where_the_distance_is_nearly_linear():
    """Far from the reference d^2 = m^2 + const: its error is 2 m std / sqrt(n), Student's t."""
    features = 1e3 + normal(2000, 1)
    reference = Statistics(None, np.zeros(1), np.eye(1))
    result = frechet_interval(accumulated(features), reference, replicates=20_000)
    means = np.square(features.reshape(20, 100).mean(axis=1))
    assert result.distance == pytest.approx(
        frechet_distance(accumulated(features).statistics(), reference), rel=1e-12
    )
    assert result.standard_error == pytest.approx(scipy.stats.sem(means), rel=1e-3)
    half = scipy.stats.t.ppf(0.975, 19) * result.standard_error
    assert result.high - result.low == pytest.approx(2 * half, rel=0.1)
    assert frechet_interval(accumulated(features), reference, seed=1) != result


def test_intervals_end_at_zero():
    reference = Statistics(None, np.zeros(1), np.eye(1))
    drawn = [accumulated(normal(100, 1, seed=seed)) for seed in range(10)]
    assert min(frechet_interval(samples, reference).low for samples in drawn) == 0


def test_spread_needs_groups_and_the_bias_needs_images():
    reference = Statistics(None, np.zeros(6), np.eye(6))
    with pytest.raises(ValueError, match=r"groups=4 and replicates=1000: .* at least 5 and 100"):
        frechet_interval(accumulated(normal(4, 6)), reference)
    with pytest.raises(ValueError, match=r"groups=20 and replicates=10: .* at least 5 and 100"):
        frechet_interval(accumulated(normal(40, 6)), reference, replicates=10)
    assert frechet_interval(accumulated(normal(6, 6)), reference).corrected is None
    assert frechet_interval(accumulated(normal(40, 6)), reference).corrected is not None
    same = frechet_interval(accumulated(np.ones((20, 6))), reference)
    assert (same.standard_error, same.low, same.high) == (0, same.distance, same.distance)


def brute_force_kernel_distance(x, y):
    def mean(pairs):
        return np.mean([(a @ b / len(a) + 1) ** 3 for a, b in pairs])

    within = [
        mean([(a, b) for i, a in enumerate(z) for j, b in enumerate(z) if i != j]) for z in (x, y)
    ]
    return sum(within) - 2 * mean([(a, b) for a in x for b in y])


def test_kernel_distance_of_subsets_is_that_of_all_images_by_brute_force():
    """A U-statistic is the mean of itself over all subsets."""
    x, y = normal(9, 3), 1 + normal(8, 3, seed=1)
    ours = kernel_distance(x, y, subsets=4000, subset_size=1000)
    assert (ours.subsets, ours.subset_size) == (4000, 4)
    assert abs(ours.mean - brute_force_kernel_distance(x, y)) < 4 * ours.over_subsets
    assert ours.over_subsets < 0.02 * ours.mean


def test_kernel_distance_of_equal_distributions_is_zero_on_average():
    values = [
        kernel_distance(normal(40, 3, seed=2 * s), normal(60, 3, seed=2 * s + 1), subsets=2).mean
        for s in range(300)
    ]
    assert abs(np.mean(values)) < 3 * scipy.stats.sem(values)
    assert min(values) < 0, "an unbiased estimate of zero"


@pytest.mark.slow
def test_kernel_distance_errors_are_those_of_other_subsets_and_other_images():
    def of(seed, images):
        x, y = normal(300, 4, seed=2 * images), 0.5 + normal(300, 4, seed=2 * images + 1)
        return kernel_distance(x, y, subsets=25, subset_size=60, seed=seed)

    subsets = [of(seed, 0) for seed in range(50)]
    images = [of(0, images) for images in range(1, 101)]
    for field, results in (("over_subsets", subsets), ("over_images", images)):
        estimated = math.sqrt(np.mean([getattr(result, field) ** 2 for result in results]))
        spread = np.std([result.mean for result in results], ddof=1)
        assert 0.75 < estimated / spread < 1.3, field
    assert of(3, 0) == of(3, 0)


@pytest.mark.parametrize(
    ("counts", "options", "message"),
    [
        ((3, 9), {}, "of 3 and 9 images needs at least 4"),
        ((9, 9), {"subsets": 1}, "subsets=1 and subset_size=1000 must be at least 2"),
        ((9, 9), {"subset_size": 1}, "subsets=100 and subset_size=1 must be at least 2"),
    ],
)
def test_too_little_for_a_kernel_distance_is_refused(counts, options, message):
    with pytest.raises(ValueError, match=message):
        kernel_distance(*(normal(count, 2) for count in counts), **options)


def test_known_tables_have_known_scores():
    uniform = np.full((40, 8), 1 / 8)
    assert inception_score(uniform) == pytest.approx((1, 0))
    classes = np.eye(8)[np.arange(40) % 8]
    assert inception_score(classes, splits=1) == pytest.approx((8, 0))
    assert inception_score(classes, splits=5) == pytest.approx((8, 0))
    # Contiguous parts of a single class each.
    assert inception_score(np.eye(8)[np.arange(40) // 5], splits=8) == pytest.approx((1, 0))


def test_score_is_the_divergence_by_brute_force():
    table = np.random.default_rng(RNG_SEED).dirichlet(np.full(6, 0.3), 25)
    edges = np.arange(11) * 25 // 10
    scores = [
        np.exp(np.mean([scipy.stats.entropy(row, table[a:b].mean(axis=0)) for row in table[a:b]]))
        for a, b in pairwise(edges)
    ]
    ours = inception_score(table.astype(np.float32))
    assert ours == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-5)


def test_tables_that_are_no_probabilities_are_refused():
    table = np.full((9, 4), 0.25)
    with pytest.raises(ValueError, match=re.escape("splits=10 must be in 1..9")):
        inception_score(table)
    for wrong in (np.nan, -0.25, 4.0):
        table[6, 1] = wrong
        with pytest.raises(
            ValueError, match=r"of 1 of 9 images .* the first of image 6; .* logits"
        ):
            inception_score(table, splits=3)


def brute_force_precision_recall(real, samples, k):
    def covered(points, centers):
        radii = np.sort(scipy.spatial.distance.cdist(centers, centers), axis=1)[:, k]
        return (scipy.spatial.distance.cdist(points, centers) <= radii).any(axis=1).mean()

    return covered(samples, real), covered(real, samples)


@pytest.mark.parametrize("block", [7, 64, 2048])
@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_those_by_brute_force(monkeypatch, block, k):
    monkeypatch.setattr(metrics.precision_recall, "_BLOCK", block)
    real, samples = normal(90, 3), 0.5 + 0.7 * normal(64, 3, seed=1)
    ours = precision_recall(real, samples, k=k)
    assert ours == pytest.approx(brute_force_precision_recall(real, samples, k))
    assert 0.2 < ours.recall < ours.precision < 1
    assert precision_recall(samples, real, k=k) == ours[::-1]


@pytest.mark.parametrize("block", [5, 7, 64])
def test_copies_are_inside_far_from_the_origin_too(monkeypatch, block):
    """Two copies of an image make balls of radius 0, which a product's rounding must not miss."""
    monkeypatch.setattr(metrics.precision_recall, "_BLOCK", block)
    images = 1e4 + 100 * normal(33, 500)
    copies = np.tile(images, (2, 1))
    assert precision_recall(copies, np.tile(images[::-1], (2, 1)), k=1) == (1, 1)
    assert precision_recall(copies, copies + 1e-3, k=1) == (0, 0)


def test_dropped_modes_cost_recall_and_strange_samples_precision():
    modes = np.repeat([[0.0], [100.0]], 50, axis=0) + normal(100, 1)
    assert precision_recall(modes, modes[:50])[:2] == (1, 0.5)
    assert precision_recall(modes[:50], modes)[:2] == (0.5, 1)


@pytest.mark.parametrize("k", [0, 5])
def test_neighbors_that_are_not_there_are_refused(k):
    with pytest.raises(ValueError, match=re.escape(f"k={k} must be in 1..4")):
        precision_recall(normal(9, 2), normal(5, 2), k=k)
