"""Learning rates against their formulas in float64."""

import math

import numpy as np
import pytest

from training.schedules import SCHEDULES, Constant, Cosine, InverseSqrt


def rates(schedule, count, steps=20, batch_size=1):
    rate = schedule.schedule(steps=steps, batch_size=batch_size)
    return np.array([float(rate(k)) for k in range(count)])


def test_constant_rate_warms_up_linearly_and_stays():
    expected = 0.1 * np.minimum(np.arange(8) / 4, 1)
    np.testing.assert_allclose(rates(Constant(lr=0.1, warmup=4), 8), expected, atol=1e-8)
    np.testing.assert_allclose(rates(Constant(lr=0.1, warmup=0), 3), 0.1, rtol=1e-6)


@pytest.mark.parametrize("warmup", [0, 4])
def test_cosine_ends_at_zero_at_the_last_step(warmup):
    step = np.arange(24)
    progress = np.clip((step - warmup) / (20 - warmup), 0, 1)
    cosine = 0.05 * (1 + np.cos(math.pi * progress))
    expected = np.where(step < warmup, 0.1 * step / max(warmup, 1), cosine)
    found = rates(Cosine(lr=0.1, warmup=warmup), 24)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_inverse_square_root_is_that_of_karras_et_al_2024():
    """Eq. 67 there, with the ramp over the first steps."""
    step = np.arange(24)
    expected = 0.1 * np.minimum(step / 6, 1) / np.sqrt(np.maximum(step / 2.5, 1))
    found = rates(InverseSqrt(lr=0.1, warmup=6, t_ref=2.5), 24)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_warmup_in_images_counts_those_of_all_steps(name):
    """EDM's ramp: the rate of a step is in proportion to the images before it."""
    images = SCHEDULES[name](lr=0.1, warmup_images=100)
    start = 0.1 * np.arange(3) * 40 / 100
    np.testing.assert_allclose(rates(images, 3, batch_size=40), start, rtol=1e-5)
    steps = SCHEDULES[name](lr=0.1, warmup=5)
    np.testing.assert_array_equal(rates(images, 12, batch_size=20), rates(steps, 12))


def test_warmup_is_5000_steps_unless_images_are_given():
    assert Constant().warmup_steps(10) == 5000
    assert Constant(warmup_images=55).warmup_steps(10) == 5.5
    assert Constant(warmup_images=0).warmup_steps(10) == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.0}, r"lr=0\.0 must be above 0"),
        ({"lr": math.inf}, "lr=inf must be above 0 and finite"),
        ({"warmup": -1}, "warmup=-1 must be at least 0"),
        ({"warmup_images": -1.0}, r"warmup_images=-1\.0 must be at least 0"),
        ({"warmup": 10, "warmup_images": 1e7}, "warmup_images=1e.07 and warmup=10: give one"),
        ({"t_ref": 0.0}, r"t_ref=0\.0 must be above 0"),
    ],
)
def test_invalid_field_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        InverseSqrt(**fields)
