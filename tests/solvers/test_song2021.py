"""discretization="published" against the published sampler, through configurations, in float64.

Once, on a development machine, both were also compared with the published code itself, with equal
noise: they agreed to 4e-14 for all of its combinations of process, network, predictor, corrector
and probability flow.
"""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import TINY, configuration
from jax.tree_util import Partial
from published_sampler import PublishedSampler

from denoising import Denoiser
from errors import ConfigError
from experiment.build import build
from experiment.configurations import known_configurations
from experiment.resolve import resolve
from numerics.arrays import fold_in_each, normal_like, sample_keys
from sampling import sample
from sde_lib import VESDE, VPSDE, CosineVPSDE, DiscreteVPSDE, LinearPathSDE, SubVPSDE
from solvers.predictor_corrector import (
    Ancestral,
    EulerMaruyama,
    Langevin,
    PredictorCorrector,
    ReverseDiffusion,
)
from time_grids import Schedule

KEY, COUNT, SHAPE = jax.random.key(0), 24, (3, 2)
NAMES = {("vp", True): "vp", ("vp", False): "ddpm", ("ve", True): "ve", ("ve", False): "smld"}


def network(x, label, numbers=np):
    """Some smooth output for some time input."""
    return 0.8 * x + 0.3 * numbers.sin(3 * x + label / 7)


def _network(x, label):
    return network(x, label.reshape(-1, 1), jnp)


@functools.cache
def draws():
    """The noises of our sampler: the prior's, and each step's, of two corrections and the rest."""

    @jax.jit
    def drawn(numbers):
        like, keys = jnp.zeros(SHAPE), sample_keys(KEY, jnp.arange(SHAPE[0]))

        def step(number):
            keys_of_step = fold_in_each(keys, 1 + number)
            corrector = fold_in_each(keys_of_step, 0)
            corrections = [normal_like(fold_in_each(corrector, i), like) for i in (0, 1)]
            return jnp.stack([*corrections, normal_like(fold_in_each(keys_of_step, 1), like)])

        return normal_like(fold_in_each(keys, 0), like), jax.vmap(step)(numbers)

    return jax.tree.map(np.asarray, drawn(np.arange(COUNT)))


def equal_noise(predictor, corrector):
    """Return the function that gives these noises one by one, as the published loop takes them."""
    prior, steps = draws()
    first, last = (0 if corrector != "none" else 2), (3 if predictor != "none" else 2)
    noises = itertools.chain([prior], *(step[first:last] for step in steps))
    return lambda: next(noises)


def fields_of(kind, continuous, predictor, corrector, flow):
    fields = {
        "sde.name": NAMES[kind, continuous],
        "denoiser.num_timesteps": COUNT,
        "denoiser.conditioning": "timestep_999" if continuous else "timestep",
        "sampling.discretization": "published",
        "sampling.grid": None,
        "sampling.final_step": None,
        "sampling.predictor": predictor,
        "sampling.corrector": corrector,
        "sampling.steps": COUNT - 1,
        "sampling.t_min": 1e-3,
    }
    if not continuous:
        fields |= {"sde.num_timesteps": COUNT, "sampling.steps": None}
    if kind == "ve":
        conditioning = "log_sigma" if continuous else "reversed_timestep"
        fields |= {"denoiser.parameterization": "scaled_score", "sampling.t_min": 1e-5}
        fields |= {"denoiser.conditioning": conditioning, "data.centered": False}
    if corrector != "none":
        fields |= {"sampling.snr": 0.16, "sampling.corrector_steps": 2}
    if predictor == "ancestral" and kind == "vp":
        fields |= {"sampling.variance": "large"}
    if flow and predictor == "euler_maruyama":
        fields |= {"sampling.churn": 0.0}
    if flow and predictor == "reverse_diffusion":
        fields |= {"sampling.predictor": "probability_flow"}
    return TINY | fields


PREDICTORS = ("none", "euler_maruyama", "reverse_diffusion", "ancestral")
CORRECTORS = ("none", "langevin", "annealed_langevin")


@pytest.mark.slow
@pytest.mark.parametrize("corrector", CORRECTORS)
@pytest.mark.parametrize("continuous", [True, False], ids=["continuous", "discrete"])
@pytest.mark.parametrize("kind", ["vp", "ve"])
def test_every_combination_is_the_published_sampler(x64, kind, continuous, corrector):
    """Of ancestral sampling the published code has no probability flow."""
    theirs = PublishedSampler(kind, COUNT, continuous)
    for predictor, flow in itertools.product(PREDICTORS, (False, True)):
        if predictor == "ancestral" and flow:
            continue
        fields = fields_of(kind, continuous, predictor, corrector, flow)
        experiment = build(configuration(fields))
        options = experiment.model.options
        denoiser = Denoiser(
            sde=experiment.model.sde,
            network=Partial(_network),
            parameterization=options.parameterization,
            conditioning=options.conditioning,
            num_timesteps=options.num_timesteps,
        )
        samples = experiment.sampler.solve(KEY, denoiser, SHAPE, None)
        expected = theirs.sample(
            network,
            equal_noise(predictor, corrector),
            t_min=fields["sampling.t_min"],
            predictor=predictor,
            corrector=corrector,
            flow=flow,
            corrector_steps=2,
        )
        assert samples.nfe == experiment.sampler.evaluations
        np.testing.assert_allclose(samples.x, expected, rtol=1e-9, atol=1e-9, err_msg=predictor)


@pytest.mark.parametrize("predictor", [EulerMaruyama(), ReverseDiffusion()])
@pytest.mark.slow
def test_sub_vp_takes_eulers_steps_as_published(x64, predictor):
    denoiser = Denoiser(sde=SubVPSDE(), network=Partial(_network))
    solver = PredictorCorrector(predictor=predictor, discretization="published")
    schedule = Schedule(steps=COUNT - 1, final_step="mean")
    samples = sample(KEY, denoiser, SHAPE, solver=solver, schedule=schedule)
    names = {EulerMaruyama: "euler_maruyama", ReverseDiffusion: "reverse_diffusion"}
    expected = PublishedSampler("subvp", COUNT).sample(
        network,
        equal_noise("any", "none"),
        t_min=1e-3,
        predictor=names[type(predictor)],
        corrector="none",
    )
    np.testing.assert_allclose(samples.x, expected, rtol=1e-9, atol=1e-9)


def test_published_configurations_take_the_published_steps():
    """One field on the command line: as many times as published, ending where published."""
    given = frozenset({"sampling.discretization"})
    seen = 0
    for name, config in known_configurations():
        family = name.removeprefix("configs/").partition("_")[0]
        if family not in ("ve", "vp", "subvp") or config.sampling.name != "pc":
            continue
        config.sampling.discretization = "published"
        sampling = resolve(config, given)["sampling"]
        chain = config.sde.name in ("ddpm", "smld")
        count = (config.sde.num_timesteps or 1000) if chain else config.sampling.steps + 1
        times = Schedule(steps=sampling["steps"], t_min=sampling["t_min"]).of(VPSDE())
        expected = np.linspace(1, 1e-5 if family == "ve" else 1e-3, count)
        np.testing.assert_allclose(times, expected, rtol=1e-9)
        assert (sampling["grid"], sampling["final_step"]) == (None, "mean"), name
        assert sampling["norm_reduction"] == "batch"
        seen += 1
    assert seen == 39


def test_what_the_command_line_sets_is_kept():
    config = configuration(TINY | {"sde.name": "ddpm", "sampling.discretization": "published"})
    given = frozenset({"sampling.discretization", "sampling.steps", "sampling.final_step"})
    sampling = resolve(config, given)["sampling"]
    assert (sampling["steps"], sampling["final_step"]) == (4, "denoise")
    exact = configuration(TINY | {"sampling.discretization": "exact"})
    given = frozenset({"sampling.discretization"})
    assert resolve(exact, given)["sampling"]["final_step"] == "denoise"


def published(**parts):
    return PredictorCorrector(discretization="published", **parts)


def planned(sde, schedule=Schedule(steps=COUNT - 1), **parts):
    return published(**parts).plan(sde, schedule.of(sde))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: PredictorCorrector(discretization="no"),
            "discretization='no' is unknown; choose one of: exact, published",
        ),
        (lambda: published(corrector_first=False), "corrector_first=False is the order of the pap"),
        (lambda: planned(VPSDE(), Schedule(grid="quadratic", steps=9)), "takes even steps from"),
        (lambda: planned(VESDE(), Schedule(grid="timesteps", steps=9)), "t_min > 0; choose grid="),
        (lambda: planned(DiscreteVPSDE()), "grid=uniform and steps=999, which gives 1000"),
        (lambda: planned(SubVPSDE(), corrector=Langevin()), "has no correctors for this process"),
        (lambda: planned(LinearPathSDE(), predictor=Ancestral()), "has no ancestral sampling for"),
        (lambda: planned(CosineVPSDE(), predictor=Ancestral()), "because a beta reaches 1"),
        (
            lambda: planned(VPSDE(), predictor=Ancestral(variance="learned")),
            "variance=small or large and guidance_form=score, not learned and score",
        ),
        (
            lambda: sample(
                KEY,
                Denoiser(sde=VPSDE(), network=Partial(_network)),
                SHAPE,
                solver=published(predictor=EulerMaruyama()),
                steps=COUNT,
            ),
            "final_step='denoise' has nothing to remove",
        ),
    ],
)
def test_what_the_published_code_does_not_have_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_final_step_of_the_command_line_is_refused_by_its_name():
    fields = {"sampling.discretization": "published", "sampling.final_step": "denoise"}
    fields |= {"sampling.steps": COUNT - 1}
    with pytest.raises(
        ConfigError, match=r"config\.sampling\.final_step='denoise' has nothing to remove"
    ):
        build(configuration(TINY | fields | {"sampling.grid": None}), overrides=frozenset(fields))
