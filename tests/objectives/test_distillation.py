"""Progressive distillation on Gaussian data, where every DDIM step is a known factor.

With y = x / alpha and s = sigma / alpha, DDIM moves y by the difference of s times eps. For
N(0, c^2), eps = s y / (c^2 + s^2).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from analytic import gaussian, standardized_mixture
from jax.tree_util import Partial

from denoising import Denoiser
from objectives.distillation import Noise, ProgressiveDistillation, two_steps_target
from objectives.weights import V
from sampling import sample
from sde_lib import EDMSDE, VPSDE, CosineVPSDE
from solvers.ddim import DDIM
from time_grids import TIME_GRIDS, Grid, Schedule
from training.objective import Context

SPREAD, DIMS = 0.8, 3
PROCESSES = [
    pytest.param(VPSDE(), id="vp"),
    pytest.param(CosineVPSDE(), id="cosine"),
    pytest.param(EDMSDE(), id="edm"),
]
every_process = pytest.mark.parametrize("sde", PROCESSES)
DATA = gaussian(np.zeros(DIMS), SPREAD**2 * np.eye(DIMS))


def round_of(steps=4, **fields):
    return ProgressiveDistillation(teacher="runs/teacher", student_steps=steps, **fields)


def level_of(sde, t):
    return np.exp(-np.asarray(sde.log_snr(t)) / 2)


def ddim_factor(s, end):
    return 1 + (end - s) * s / (SPREAD**2 + s**2)


@every_process
@pytest.mark.slow
def test_target_on_gaussian_data_is_known(x64, sde):
    drawn = round_of().draw(jax.random.key(0), DATA.denoiser(sde), jnp.zeros((16, DIMS)), Context())
    x = jax.random.normal(jax.random.key(1), (16, DIMS)) * 2
    s, middle, end = (level_of(sde, t)[:, None] for t in (drawn.t, drawn.middle, drawn.end))
    y = np.asarray(x) / np.asarray(sde.alpha(drawn.t))[:, None]
    final = y * ddim_factor(s, middle) * ddim_factor(middle, end)
    expected = (final - end / s * y) / (1 - end / s)  # one step: final = x0 + end / s (y - x0)
    found = two_steps_target(DATA.denoiser(sde), x, drawn)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)


@every_process
@pytest.mark.slow
def test_weights_are_the_published_ones_of_the_error_of_x0(x64, sde):
    """arXiv:2202.00512, Section 4: SNR + 1."""
    network = Partial(lambda x, t: jnp.sin(x))
    model = Denoiser(sde=sde, network=network, parameterization="x0", conditioning="t")
    teacher, key = standardized_mixture(DIMS).denoiser(sde), jax.random.key(0)
    x0, loss = jax.random.normal(key, (16, DIMS)), round_of(weight=V())
    context = Context(teacher=teacher)
    drawn = loss.draw(key, model, x0, context)
    x = sde.perturb(x0, drawn.t, drawn.eps)
    error = np.mean((np.sin(x) - two_steps_target(teacher, x, drawn)) ** 2, axis=1)
    weight = level_of(sde, drawn.t) ** -2.0 + 1
    np.testing.assert_allclose(loss(key, model, x0, context).values, weight * error, rtol=1e-9)


@every_process
@pytest.mark.slow
def test_every_step_of_the_student_is_trained_and_is_two_of_the_teacher(sde):
    loss = round_of(grid="log_snr")
    drawn = loss.draw(jax.random.key(0), DATA.denoiser(sde), jnp.zeros((400, 1)), Context())
    student = Schedule(grid="log_snr", steps=4, final_step="none").of(sde)
    teacher = Schedule(grid="log_snr", steps=8, final_step="none").of(sde)
    index = np.abs(student - np.asarray(drawn.t)[:, None]).argmin(axis=1)
    assert set(index) == {0, 1, 2, 3}
    np.testing.assert_allclose(drawn.t, teacher[2 * index], rtol=1e-6)
    np.testing.assert_allclose(drawn.middle, teacher[2 * index + 1], rtol=1e-6)
    np.testing.assert_allclose(drawn.end, teacher[2 * index + 2], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("grid", ["uniform", "log_snr"])
def test_perfect_student_samples_as_its_teacher_with_twice_the_steps(grid):
    """Its x0 is the target at each of its times, so its loss is 0 and its samples are the same."""
    sde, teacher, loss = VPSDE(), standardized_mixture().denoiser(VPSDE()), round_of(grid=grid)
    times = jnp.asarray(loss.teacher_times(sde), jnp.float32)

    def network(x, t):
        index = jnp.argmin(jnp.abs(times[::2][None] - t[:, None]), axis=1)
        drawn = [times[2 * index + offset] for offset in (0, 1, 2)]
        return two_steps_target(teacher, x, Noise(*drawn, x))

    student = Denoiser(sde=sde, network=network, parameterization="x0", conditioning="t")
    x0 = jax.random.normal(jax.random.key(2), (32, 2))
    values = loss(jax.random.key(3), student, x0, Context(teacher=teacher)).values
    np.testing.assert_allclose(values, 0, atol=1e-9)
    found, expected = (
        sample(
            jax.random.key(0),
            denoiser,
            (32, 2),
            solver=DDIM(),
            schedule=Schedule(grid=grid, final_step="none"),
            steps=steps,
        )
        for denoiser, steps in ((student, 4), (teacher, 8))
    )
    np.testing.assert_allclose(found.x, expected.x, atol=2e-5)
    assert (found.nfe, expected.nfe) == (4, 8)


def test_grid_that_does_not_halve_is_refused(monkeypatch):
    def uneven(sde, u, t_min, rho):
        return 1 + (t_min - 1) * u ** (1 + 1 / len(u))

    monkeypatch.setitem(TIME_GRIDS, "uneven", Grid(uneven))
    message = "grid='uneven' with 8 steps has other times than with 4; choose another"
    with pytest.raises(ValueError, match=message):
        round_of(grid="uneven").teacher_times(EDMSDE())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"teacher": ""}, r"teacher='' is missing: .*give its folder"),
        ({"student_steps": 0}, r"student_steps=0 must be at least 1"),
        ({"grid": "cubic"}, r"grid='cubic' is unknown"),
        ({"t_min": 0.0}, r"t_min=0\.0 must lie in \(0, 1\)"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveDistillation(**{"teacher": "runs/teacher"} | fields)
