"""Networks with reproducible weights, and the laws that all networks obey.

The references in tests/fixtures are outputs of the published codes with these very weights.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

# Compiling these networks costs far more than running them, so XLA does not optimize.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def abstract_params(network, size=8, channels=3):
    """Return the shapes of the parameters."""

    def init(key):
        x, cond = jnp.zeros((1, size, size, channels)), jnp.zeros((1,))
        return network.init(key, x, cond, train=False)["params"]

    return jax.eval_shape(init, jax.random.key(0))


def parameter_count(network, size=8, channels=3):
    leaves = jax.tree.leaves(abstract_params(network, size, channels))
    return sum(math.prod(leaf.shape) for leaf in leaves)


# Center and half-width of the weights of every kind; kernels scale with their number of inputs.
RANGES = {
    "scale": (1.0, 0.5),
    "gamma": (1.0, 0.5),
    "alpha": (1.0, 0.5),
    "beta": (0.0, 0.5),
    "bias": (0.0, 0.5),
    "frequencies": (0.0, 16.0),
    "positions": (0.0, 1.0),
    "table": (0.0, 1.0),
}


def seeded_params(network, size=8, channels=3, dtype=np.float32):
    """Draw weights without zeros in the order of the sorted paths, as for the references."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        u = rng.uniform(-1.0, 1.0, leaf.shape)
        if path[-1].key == "kernel":
            u = u * math.sqrt(3.0 / math.prod(leaf.shape[:-1]))
        else:
            center, half_width = RANGES[path[-1].key]
            u = center + half_width * u
        return u.astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(network, size, channels))


def seeded_batch(dtype=np.float32, cond=(1.5, 2.75)):
    """Draw two images, with their noise levels."""
    rng = np.random.default_rng(1)
    return rng.uniform(-1.0, 1.0, (2, 8, 8, 3)).astype(dtype), np.array(cond, dtype)


def named(tree):
    """Return the leaves by path, as in {"output/bias": ...}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}


def evaluator(network):
    """Return the network without dropout, as a function of (params, x, cond, *labels)."""
    return lambda params, *inputs, **named: network.apply(
        {"params": params}, *inputs, **named, train=False
    )


@functools.cache
def compiled(network):
    """Compile `evaluator` once for all tests of a file."""
    return quick_jit(evaluator(network))


def trained(network, params, x, cond):
    """Return the network with dropout, as a function of its key."""

    @quick_jit
    def apply(key):
        rngs = {"dropout": key}
        return network.apply({"params": params}, x, cond, train=True, rngs=rngs)

    return apply


def assert_published(y, references, name, params):
    """Assert that the output is the published code's; `references` has the sum of its weights.

    A renamed submodule may change the order of the draws, and then fails here too.
    """
    total = sum(float(np.sum(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(params))
    assert total == pytest.approx(float(references[f"{name}_weight_sum"])), "other weights"
    expected = references[f"{name}_y"]
    assert np.max(np.abs(y - expected)) < 1e-5 * np.max(np.abs(expected))


def assert_derivatives_agree(network, *labels, fixed=(), cond=(1.5, 2.75)):
    """Assert that J v is a central difference, and <u, J v> = <J^T u, v>, in float64.

    Every parameter outside `fixed` has a gradient, and rematerialized blocks have the same
    gradients. Return the gradients of <u, y> by name.
    """
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        params, (x, cond) = seeded_params(network, dtype=np.float64), seeded_batch(np.float64, cond)
        rng = np.random.default_rng(2)
        u, v = rng.normal(size=x.shape), rng.normal(size=x.shape)

        def pull_back(network, params, x):
            f = evaluator(network)
            return jax.vjp(lambda params, x: f(params, x, cond, *labels), params, x)[1](u)

        def derivatives(params, x):  # one program, since compilation is slow
            f = evaluator(network)
            y, jvp = jax.jvp(lambda x: f(params, x, cond, *labels), (x,), (v,))
            return y, jvp, *pull_back(network, params, x)

        traced = quick_jit(derivatives).trace(params, x)
        kept = traced.lower().compile()
        y, jvp, gradients, vjp = kept(params, x)
        assert y.dtype == jvp.dtype == vjp.dtype == jnp.float64
        h = 1e-6
        difference = (kept(params, x + h * v)[0] - kept(params, x - h * v)[0]) / (2 * h)
        np.testing.assert_allclose(jvp, difference, rtol=1e-6, atol=1e-6)
        assert np.vdot(u, jvp) == pytest.approx(np.vdot(vjp, v), rel=1e-10)

        again = quick_jit(functools.partial(pull_back, network.copy(remat=True))).trace(params, x)
        assert str(again.jaxpr).count("remat") > str(traced.jaxpr).count("remat")
        again, _ = again.lower().compile()(params, x)
        gradients, again = (named(jax.tree.map(np.asarray, tree)) for tree in (gradients, again))
    for name, gradient in gradients.items():
        size = np.max(np.abs(gradient))
        if name in fixed:
            assert size == 0, name
        elif not name.endswith("/key/bias"):  # softmax ignores what is added to every logit
            assert size > 1e-6, name
            tolerance = {"rtol": 0, "atol": 1e-12 * size}
            np.testing.assert_allclose(again[name], gradient, **tolerance, err_msg=name)
    return gradients


def assert_bfloat16_is_close(network, least=0.0, *, cond=(1.5, 2.75)):
    """Assert half precision inside and float32 outside; `least` proves that it is used."""
    params, inputs = seeded_params(network), seeded_batch(cond=cond)
    exact = compiled(network)(params, *inputs)
    rough = compiled(network.copy(compute_dtype="bfloat16"))(params, *inputs)
    assert rough.dtype == jnp.float32
    error = np.max(np.abs(rough - exact)) / np.max(np.abs(exact))
    assert least < error < 2e-2


def assert_dropout_acts_in_training_only(network):
    """Assert this for a copy with dropout; `network` has none."""
    inputs = seeded_params(network), *seeded_batch()
    dropping = network.copy(dropout=0.5)
    f = trained(dropping, *inputs)
    first, again, second = (f(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second, atol=1e-2)
    np.testing.assert_array_equal(compiled(dropping)(*inputs), compiled(network)(*inputs))


def assert_refused(network, field, message, size=8):
    """Assert that an invalid field is named before anything is computed."""
    with pytest.raises(ValueError, match=message) as error:
        network.validate(size, 3)
    section = getattr(network, "SECTION", "model")
    assert str(error.value).startswith(f"config.{section}.{field}=")
    with pytest.raises(ValueError, match=message):
        abstract_params(network)


def assert_wrong_images_are_refused(network):
    for size, channels in ((0, 3), (8, 0)):
        with pytest.raises(
            ValueError, match=r"config\.data\.(image_size|channels)=0 must be at least 1"
        ):
            network.validate(size, channels)
    with pytest.raises(ValueError, match="8x16 pixels; valid is square"):
        network.init(jax.random.key(0), jnp.zeros((1, 8, 16, 3)), jnp.zeros(1), train=False)


def assert_check_refuses_what_layers_refuse(kind, fields):
    """Assert that `validate` and the layers agree about these fields."""

    class Unchecked(kind):
        @nn.nowrap
        def validate(self, image_size, channels):
            pass

    def refuses(act):
        try:
            act()
        except ValueError:
            return True
        return False

    checked = refuses(lambda: kind(**fields).validate(8, 3))
    assert checked == refuses(lambda: abstract_params(Unchecked(**fields)))
