"""The networks of points and series: shapes, derivatives, what they depend on, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import quick_jit

from models.mlp import MLP, MLPClassifier
from models.unet1d import UNet1D

POINTS = MLP(features=8, depth=1, num_classes=3)
SERIES = UNet1D(features=4, channel_multipliers=(1, 2), num_classes=3)
CASES = [(POINTS, (2,)), (POINTS, (4, 1)), (SERIES, (4, 2))]


def random_params(network, shape, dtype=np.float32, **more):
    """Draw weights without zeros, so that every input has an effect."""
    x, cond = jnp.zeros((1, *shape)), jnp.zeros(1)
    template = jax.eval_shape(
        lambda key: network.init(key, x, cond, train=False), jax.random.key(0)
    )
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.4, leaf.shape).astype(dtype), template)


def inputs(shape, dtype=np.float32):
    rng = np.random.default_rng(1)
    return rng.normal(size=(3, *shape)).astype(dtype), np.array([-1.0, 0.5, 3.0], dtype)


@pytest.mark.parametrize(("network", "shape"), CASES)
@pytest.mark.slow
def test_the_output_depends_on_rows_time_and_class_of_its_own_row(network, shape):
    params, (x, cond) = random_params(network, shape), inputs(shape)

    @quick_jit
    def f(x, cond, labels):
        return network.apply(params, x, cond, labels, train=False)

    y = f(x, cond, jnp.array([0, 1, 3]))
    assert y.shape == x.shape
    for other in (
        f(np.flip(x, 0), cond, jnp.array([0, 1, 3])),
        f(x, cond + 1, jnp.array([0, 1, 3])),
        f(x, cond, jnp.array([1, 2, 0])),
    ):
        assert np.abs(other - y).reshape(3, -1).max(axis=1)[0] > 1e-4
    changed = f(np.concatenate([x[:2], x[2:] + 1]), cond, jnp.array([0, 1, 3]))
    np.testing.assert_allclose(changed[:2], y[:2], rtol=1e-5, atol=1e-5)
    again = quick_jit(lambda x: network.apply(params, x, cond, train=False))(x)
    np.testing.assert_allclose(f(x, cond, jnp.array([3, 3, 3])), again, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_new_network_is_zero_and_variances_double_the_last_axis():
    x, cond = inputs((2,))
    both = POINTS.copy(learned_variance=True)
    new = quick_jit(lambda key: both.init_with_output(key, x, cond, train=False)[0])
    y = new(jax.random.key(0))
    assert y.shape == (*x.shape[:-1], 2 * x.shape[-1])
    assert np.abs(y).max() < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "shape"), [CASES[0], (SERIES.copy(channel_multipliers=(1,)), (4, 2))]
)
def test_derivatives_are_central_differences_and_rematerialized_blocks_agree(network, shape):
    with jax.enable_x64(True):
        params, (x, cond) = random_params(network, shape, np.float64), inputs(shape, np.float64)
        v = np.random.default_rng(2).normal(size=x.shape)

        def f(x, network=network):
            return network.apply(params, x, cond, train=False)

        def both(x):
            remat = network.copy(remat=True)
            return (
                jax.jvp(f, (x,), (v,))[1],
                jax.vjp(f, x)[1](v)[0],
                jax.vjp(lambda x: f(x, remat), x)[1](v)[0],
            )

        jvp, vjp, again = quick_jit(both)(x)
        h = 1e-6
        plain = quick_jit(f)
        difference = (plain(x + h * v) - plain(x - h * v)) / (2 * h)
        np.testing.assert_allclose(jvp, difference, rtol=1e-5, atol=1e-6)
        assert np.vdot(v, jvp) == pytest.approx(np.vdot(vjp, v), rel=1e-9)
        np.testing.assert_allclose(again, vjp, rtol=1e-10, atol=1e-12)


def test_dropout_acts_in_training_only():
    network = POINTS.copy(dropout=0.5)
    params, (x, cond) = random_params(network, (2,)), inputs((2,))

    @quick_jit
    def drop(key):
        return network.apply(params, x, cond, train=True, rngs={"dropout": key})

    first, second = drop(jax.random.key(0)), drop(jax.random.key(1))
    assert np.abs(first - second).max() > 1e-3


def test_the_classifier_has_logits_for_each_class():
    network = MLPClassifier(features=8, depth=1, num_classes=5)
    params, (x, cond) = random_params(network, (2,)), inputs((2,))
    params = {"params": params["params"]}
    logits = quick_jit(lambda x: network.apply(params, x, cond, train=False))(x)
    assert logits.shape == (3, 5)
    assert np.abs(logits[0] - logits[1]).max() > 1e-4


@pytest.mark.parametrize(
    ("network", "sizes", "message"),
    [
        (MLP(features=1), (2,), r"config\.model\.features=1; valid is an integer, 2 or more"),
        (MLP(depth=0), (2,), r"config\.model\.depth=0"),
        (MLP(mlp_ratio=0.001), (2,), r"config\.model\.mlp_ratio=0\.001"),
        (MLPClassifier(num_classes=0), (2,), r"config\.classifier\.num_classes=0"),
        (UNet1D(features=6), (8, 1), r"config\.model\.features=6; valid is a multiple of 4"),
        (UNet1D(channel_multipliers=()), (8, 1), r"config\.model\.channel_multipliers=\(\)"),
        (
            UNet1D(channel_multipliers=(1, 1, 1)),
            (6, 1),
            "at most 2 resolutions for series of length 6.*pad the series to a multiple of 4",
        ),
    ],
)
def test_fields_that_do_not_fit_are_named(network, sizes, message):
    with pytest.raises(ValueError, match=message):
        network.validate(*sizes)
