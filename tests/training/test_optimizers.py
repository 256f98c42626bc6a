"""Optimizers against their papers' formulas in float64, and against optax."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from training.optimizers import (
    OPTIMIZERS,
    SGD,
    Adafactor,
    Adam,
    AdamW,
    Lion,
    Muon,
    Optimizer,
    RAdam,
    ScheduleFreeAdamW,
)
from training.schedules import Constant, Cosine

LR = 0.1
RATE = Constant(lr=LR, warmup=3)
STEPS = 5


def tree(seed):
    """A kernel of a convolution, a matrix, a vector, and frequencies that are never trained."""
    rng = np.random.default_rng(seed)
    shapes = {"conv": (3, 3, 2, 4), "dense": (5, 4), "bias": (4,), "frequencies": (6,)}
    arrays = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    if seed:
        arrays["frequencies"][:] = 0  # a gradient that is stopped
    return arrays


def trained(optimizer, count=STEPS):
    """The parameters after each step, and the last state."""
    params = jax.tree.map(jnp.asarray, tree(0))
    state = jax.jit(optimizer.init)(params)
    update, found = jax.jit(optimizer.update), []
    for k in range(count):
        params, state = update(jax.tree.map(jnp.asarray, tree(1 + k)), state, params)
        found.append(params)
    return found, state


def by_optax(chain, count=STEPS):
    """The same of an optax transformation."""

    class Plain:
        init = staticmethod(chain.init)

        @staticmethod
        def update(grads, state, params):
            updates, state = chain.update(grads, state, params)
            return optax.apply_updates(params, updates), state

    return trained(Plain, count)


def rule(cls, **fields):
    return Optimizer(rule=cls(grad_clip=0.0, **fields), learning_rate=RATE)


def same(found, expected, rtol=1e-9):
    """Learning rates are float32, and their rounding is the only one that counts."""
    compare = functools.partial(np.testing.assert_allclose, rtol=rtol, atol=rtol / 10)
    jax.tree.map(compare, found, expected)


def ramp(k):
    return LR * min(k / 3, 1)


def numpy_steps(update, count=STEPS):
    """Run update(name, k, gradient, parameter, memory) on every array; memory is a dict of its."""
    params, memories = tree(0), {name: {} for name in tree(0)}
    for k in range(count):
        for name, gradient in tree(1 + k).items():
            params[name] = update(name, k, gradient, params[name], memories[name])
    return params


def adam_direction(k, g, memory, beta1=0.9, beta2=0.999, eps=1e-8):
    memory["m"] = beta1 * memory.get("m", 0) + (1 - beta1) * g
    memory["v"] = beta2 * memory.get("v", 0) + (1 - beta2) * g**2
    m, v = memory["m"] / (1 - beta1 ** (k + 1)), memory["v"] / (1 - beta2 ** (k + 1))
    return m / (np.sqrt(v) + eps)


@pytest.mark.parametrize("matrices_only", [True, False])
def test_adamw_decays_matrices_or_everything_that_is_trained(matrices_only, x64):
    """Loshchilov & Hutter 2019, Algorithm 2."""

    def update(name, k, g, p, memory):
        decays = name in ("conv", "dense") or (name == "bias" and not matrices_only)
        return p - ramp(k) * (adam_direction(k, g, memory) + 0.3 * decays * p)

    ours = rule(AdamW, weight_decay=0.3, decay_matrices_only=matrices_only)
    found, _ = trained(ours)
    same(found[-1], numpy_steps(update), rtol=1e-6)
    np.testing.assert_array_equal(found[-1]["frequencies"], tree(0)["frequencies"])


def test_adam_is_that_of_optax_to_the_last_bit():
    chain = optax.chain(
        optax.clip_by_global_norm(0.5), optax.adam(optax.linear_schedule(0.0, LR, 3), b1=0.8)
    )
    ours = Optimizer(rule=Adam(grad_clip=0.5, beta1=0.8), learning_rate=RATE)
    jax.tree.map(np.testing.assert_array_equal, trained(ours)[0], by_optax(chain)[0])
    assert jax.tree.structure(ours.init(tree(0))) == jax.tree.structure(chain.init(tree(0)))


def test_lion_steps_by_the_sign(x64):
    """Chen et al. 2023, Algorithm 2."""

    def update(name, k, g, p, memory):
        m = memory.get("m", 0)
        memory["m"] = 0.95 * m + 0.05 * g
        decay = 0.3 * p if name in ("conv", "dense") else 0
        return p - ramp(k) * (np.sign(0.8 * m + 0.2 * g) + decay)

    found, _ = trained(rule(Lion, beta1=0.8, beta2=0.95, weight_decay=0.3))
    same(found[-1], numpy_steps(update), rtol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_has_momentum_and_decay(nesterov, x64):
    def update(name, k, g, p, memory):
        memory["m"] = 0.5 * memory.get("m", 0) + g
        direction = g + 0.5 * memory["m"] if nesterov else memory["m"]
        return p - ramp(k) * (direction + (0.3 * p if name in ("conv", "dense") else 0))

    found, _ = trained(rule(SGD, momentum=0.5, nesterov=nesterov, weight_decay=0.3))
    same(found[-1], numpy_steps(update), rtol=1e-6)


@pytest.mark.slow
def test_schedule_free_samples_with_the_mean_of_its_steps(x64):
    """Defazio et al. 2024, Algorithm 1, with the weights of its Section 4.

    optax weighs the step of rate lr(k) by the largest rate up to k + 1.
    """
    beta, xs = 0.8, {name: value.copy() for name, value in tree(0).items()}

    def update(name, k, g, y, memory):
        z, x = memory.get("z", y), memory.get("x", y)
        memory["v"] = 0.99 * memory.get("v", 0) + 0.01 * g**2
        scale = np.sqrt(memory["v"] / (1 - 0.99 ** (k + 1))) + 1e-8
        decay = 0.3 * y if name in ("conv", "dense") else 0
        z = z - ramp(k) * (g / scale + decay)
        memory["sum"] = memory.get("sum", 0) + ramp(k + 1) ** 2
        c = ramp(k + 1) ** 2 / memory["sum"]
        memory["z"], memory["x"] = z, (1 - c) * x + c * z
        xs[name] = memory["x"]
        return beta * memory["x"] + (1 - beta) * z

    ours = rule(ScheduleFreeAdamW, beta1=beta, beta2=0.99, weight_decay=0.3)
    found, state = trained(ours)
    same(found[-1], numpy_steps(update), rtol=1e-6)
    same(ours.evaluation_params(state, found[-1]), xs, rtol=1e-6)
    # Without the mask, it is the one of optax.
    everything = rule(ScheduleFreeAdamW, beta1=beta, beta2=0.99, weight_decay=0.0)
    theirs = contrib.schedule_free_adamw(LR, 3, b1=beta, b2=0.99)
    same(trained(everything)[0], by_optax(theirs)[0])


def orthogonalized(matrix, steps=5):
    """The quintic Newton-Schulz iteration of Jordan et al. 2024."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (np.linalg.norm(matrix) + 1e-8)
    x = x.T if (tall := x.shape[0] > x.shape[1]) else x
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if tall else x


def test_muon_orthogonalizes_matrices_and_kernels_and_leaves_vectors_to_adam(x64):
    """Momentum 0 and no look-ahead: the direction is the orthogonalized gradient.

    Its root mean square is 0.2 (Liu et al. 2025, Eq. 4), if all singular values are 1.
    """

    def update(name, k, g, p, memory):
        if name in ("bias", "frequencies"):
            return p - ramp(k) * adam_direction(k, g, memory)
        flat = g.reshape(-1, g.shape[-1])
        direction = 0.2 * math.sqrt(max(flat.shape)) * orthogonalized(flat)
        return p - ramp(k) * (direction.reshape(g.shape) + 0.3 * p)

    found, _ = trained(rule(Muon, momentum=0.0, nesterov=False, weight_decay=0.3))
    same(found[-1], numpy_steps(update), rtol=1e-6)


@pytest.mark.slow
def test_fields_reach_optax(x64):
    """Where the formulas above leave out a field."""
    rate = optax.linear_schedule(0.0, LR, 3)
    for ours, theirs in (
        (rule(RAdam, beta1=0.8, eps=1e-5), optax.radam(rate, b1=0.8, eps=1e-5)),
        (
            rule(Adafactor, min_dim_size_to_factor=3, decay_rate=0.7, momentum=0.5),
            optax.adafactor(
                rate, 3, decay_rate=0.7, momentum=0.5, multiply_by_parameter_scale=False
            ),
        ),
    ):
        same(trained(ours)[0], by_optax(theirs)[0])


def test_adafactor_decays_with_the_learning_rate(x64):
    """With no gradient there is decay alone."""
    params = jax.tree.map(jnp.ones_like, tree(0))
    optimizer = rule(Adafactor, weight_decay=0.3)
    state, update = jax.jit(optimizer.init)(params), jax.jit(optimizer.update)
    for k in range(3):
        after, state = update(jax.tree.map(jnp.zeros_like, params), state, params)
        np.testing.assert_allclose(after["dense"], 1 - 0.3 * ramp(k))
        np.testing.assert_array_equal(after["bias"], 1)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_says_its_rate_and_keeps_a_state_of_arrays(name):
    optimizer = Optimizer(rule=OPTIMIZERS[name](), learning_rate=RATE)
    params = {"dense": jnp.ones((4, 4)), "bias": jnp.ones(4)}
    state = jax.jit(optimizer.init)(params)
    update = jax.jit(optimizer.update)
    for k in range(3):
        assert float(optimizer.current_rate(state)) == pytest.approx(ramp(k))
        params, state = update(params, state, params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    assert float(params["dense"][0, 0]) < 1
    averaged = optimizer.evaluation_params(state, params)
    assert jax.tree.structure(averaged) == jax.tree.structure(params)


@pytest.mark.parametrize(("clip", "scale"), [(0.0, 1.0), (1.0, 0.2), (10.0, 1.0)])
def test_gradients_are_clipped_by_their_global_norm(clip, scale):
    """Seen through Adam's first moment, (1 - beta1) times the clipped gradient."""
    optimizer = Optimizer(rule=Adam(grad_clip=clip, beta1=0.5))
    gradients = {"a": jnp.array([3.0]), "b": jnp.array([4.0, 0.0])}
    state = jax.jit(optimizer.init)(gradients)
    _, state = jax.jit(optimizer.update)(gradients, state, gradients)
    moments = optax.tree.get(state, "mu")
    np.testing.assert_allclose(moments["a"], [1.5 * scale], rtol=1e-6)
    np.testing.assert_allclose(moments["b"], [2 * scale, 0], rtol=1e-6)


@pytest.mark.parametrize(
    ("cls", "fields", "message"),
    [
        (Adam, {"eps": math.nan}, "eps=nan must be above 0"),
        (Adam, {"grad_clip": -1.0}, r"grad_clip=-1\.0 must be at least 0"),
        (AdamW, {"beta1": 1.0}, r"beta1=1\.0 must lie in \[0, 1\)"),
        (Lion, {"beta2": -0.1}, r"beta2=-0\.1 must lie in \[0, 1\)"),
        (Lion, {"weight_decay": -0.1}, r"weight_decay=-0\.1 must be at least 0"),
        (ScheduleFreeAdamW, {"beta1": 0.0}, r"beta1=0\.0 must lie in \(0, 1\)"),
        (Muon, {"ns_steps": 0}, r"ns_steps=0 must lie in \[1, 100\]"),
        (SGD, {"momentum": 1.0}, r"momentum=1\.0 must lie in \[0, 1\)"),
        (Adafactor, {"decay_rate": 0.0}, r"decay_rate=0\.0 must lie in \(0, 1\]"),
    ],
)
def test_invalid_field_is_named(cls, fields, message):
    with pytest.raises(ValueError, match=message):
        cls(**fields)


def test_schedule_free_refuses_a_schedule():
    with pytest.raises(ValueError, match=r"set config\.optim\.schedule='constant'"):
        Optimizer(rule=ScheduleFreeAdamW(), learning_rate=Cosine())
