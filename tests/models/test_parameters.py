"""Parameters are found without their initializers, and wrong shapes are Linen's errors."""

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from models.blocks.parameters import Conv, Dense

LAYERS = {"dense": (Dense, nn.Dense, {}), "conv": (Conv, nn.Conv, {"kernel_size": (2, 2)})}


@pytest.mark.parametrize("name", LAYERS)
def test_initializers_are_called_for_new_parameters_alone(name):
    calls = []

    def counted(key, shape, dtype):
        calls.append(shape)
        return jax.random.normal(key, shape, dtype)

    ours, linen, options = LAYERS[name]
    options = options | {"features": 3, "kernel_init": counted, "bias_init": counted}
    ours, linen = ours(**options), linen(**options)
    x = jnp.arange(32.0).reshape(1, 4, 4, 2)
    params = ours.init(jax.random.key(0), x)
    jax.tree.map(np.testing.assert_array_equal, params, linen.init(jax.random.key(0), x))
    expected = linen.apply(params, x)
    assert calls
    calls.clear()
    np.testing.assert_array_equal(ours.apply(params, x), expected)
    assert not calls


@pytest.mark.parametrize("name", LAYERS)
def test_a_parameter_of_another_shape_is_the_error_of_linen(name):
    ours, _, options = LAYERS[name]
    layer = ours(features=3, **options)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))
    with pytest.raises(flax.errors.ScopeParamShapeError):
        layer.apply(params, jnp.zeros((1, 4, 4, 5)))
