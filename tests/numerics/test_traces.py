"""Random probes of traces of Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from numerics.arrays import sample_keys
from numerics.traces import PROBES

KEY = jax.random.key(0)


@pytest.mark.parametrize("trace", PROBES)
def test_probes_have_unit_covariance(trace):
    x = jnp.zeros((2, 3, 1))
    probes = np.asarray(PROBES[trace](KEY, 20_000, x)).reshape(-1, 6)
    np.testing.assert_allclose(probes.T @ probes / len(probes), np.eye(6), atol=0.05)
    if trace == "rademacher":
        assert set(np.unique(probes)) == {-1.0, 1.0}


def test_probes_of_a_sample_are_drawn_from_its_own_key():
    keys = sample_keys(KEY, jnp.arange(3))
    draws = [np.asarray(PROBES["gaussian"](key, 1, jnp.zeros(4))) for key in keys]
    assert len(np.unique(np.stack(draws), axis=0)) == 3
