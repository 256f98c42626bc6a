"""Averages of any length from snapshots, against the same averages kept all along."""

import numpy as np
import pytest

from training.post_hoc import PowerFunction, exponent_of, fit

STORED = (0.05, 0.1)
STEPS = 5000


def weights(step, length):
    """The weight of each step's parameters in the average at `step`; zero later on."""
    power = exponent_of(length) + 1
    return np.diff(np.minimum(np.arange(STEPS + 1) / step, 1) ** power)


def stored(every, last=STEPS):
    return [PowerFunction(s, length) for s in range(every, last + 1, every) for length in STORED]


@pytest.mark.parametrize("length", [0.01, 0.05, 0.1, 0.25, 0.28])
def test_length_is_the_relative_spread_of_the_weights(length):
    exponent = exponent_of(length)
    variance = (exponent + 1) / ((exponent + 2) ** 2 * (exponent + 3))
    assert np.sqrt(variance) == pytest.approx(length, rel=1e-9)
    middle, w = np.arange(STEPS) + 0.5, weights(STEPS, length)
    spread = np.sqrt(w @ middle**2 - (w @ middle) ** 2)
    assert spread / STEPS == pytest.approx(length, rel=1e-4)


@pytest.mark.parametrize("length", [0.03, 0.06, 0.08, 0.12, 0.2])
@pytest.mark.parametrize("last", [STEPS, STEPS // 2])
def test_reconstruction_is_the_average_kept_all_along(length, last):
    """On a path that turns and fluctuates; the error is at most the one of the least squares."""
    rng, time = np.random.default_rng(1), np.linspace(0, 1, STEPS)
    path = np.stack([np.sin(9 * time), np.exp(-5 * time), rng.normal(size=STEPS)])
    snapshots = stored(50, last)
    found = fit(snapshots, PowerFunction(last, length))
    averages = np.stack([path @ weights(*each) for each in snapshots])
    exact = weights(last, length)
    error = np.abs(found.coefficients @ averages - path @ exact)
    assert found.error < 5e-3
    # Cauchy-Schwarz, with the norm of the path over the steps up to the last.
    bound = found.error * np.linalg.norm(exact) * np.linalg.norm(path[:, :last], axis=1)
    assert np.all(error < 1.01 * bound + 1e-9)
    assert error[:2].max() < 1e-3
    assert error[2] < 5 * found.error * np.linalg.norm(exact)  # five deviations of the noise


@pytest.mark.parametrize("length", STORED)
def test_stored_length_is_its_own_last_snapshot(length):
    snapshots = stored(500)
    found = fit(snapshots, PowerFunction(STEPS, length))
    wanted = [each == PowerFunction(STEPS, length) for each in snapshots]
    np.testing.assert_allclose(found.coefficients, wanted, atol=1e-6)
    assert found.error < 1e-7


@pytest.mark.parametrize("length", [0.01, 0.07, 0.28])
def test_parameters_that_never_moved_stay_as_they_are(length):
    found = fit(stored(500), PowerFunction(STEPS, length))
    assert np.sum(found.coefficients) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("length", [0.02, 0.07, 0.2])
def test_error_is_the_distance_of_the_densities_and_nearly_the_least(length):
    """By sums over steps, and beside the least squares of NumPy on these."""
    snapshots = stored(500)
    found = fit(snapshots, PowerFunction(STEPS, length))
    basis = np.stack([weights(*each) for each in snapshots], axis=1)
    exact = weights(STEPS, length)

    def distance(coefficients):
        return np.linalg.norm(basis @ coefficients - exact) / np.linalg.norm(exact)

    assert found.error == pytest.approx(distance(found.coefficients), rel=1e-3)
    least = distance(np.linalg.lstsq(basis, exact, rcond=None)[0])
    assert 0.999 * least < found.error < 1.2 * least


def test_error_falls_with_the_number_of_snapshots_and_grows_away_from_the_stored_lengths():
    errors = [fit(stored(every), PowerFunction(STEPS, 0.08)).error for every in (1000, 250, 50)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    near, far = (fit(stored(500), PowerFunction(STEPS, length)).error for length in (0.06, 0.01))
    assert far > 10 * near


def test_double_precision_is_enough_for_hundreds_of_averages():
    """Coefficients do not grow, so that rounding of the snapshots does not either."""
    for length in (0.02, 0.08, 0.25):
        found = fit(stored(50), PowerFunction(STEPS, length))
        assert np.abs(found.coefficients).sum() < 100
