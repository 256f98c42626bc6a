"""Weights of the noise levels: each is the squared error of what its name says."""

import jax.numpy as jnp
import numpy as np
import pytest

from denoising import Denoiser
from objectives.weights import EDM, G2, X0, MinSNR, Sigma2, Sigmoid, V, Velocity
from sde_lib import VESDE, VPSDE, LinearPathSDE

RNG = np.random.default_rng(0)
X, EPS, OUTPUT = RNG.normal(size=(3, 5, 4, 2))
T = np.array([0.02, 0.3, 0.6, 0.9, 1.0])


def errors(sde, parameterization):
    """Squared errors of an output, as the network gives it, and of the noise it encodes."""
    x_t = sde.perturb(jnp.asarray(X), jnp.asarray(T), jnp.asarray(EPS))
    denoiser = Denoiser(
        sde=sde,
        network=lambda x, t: jnp.asarray(OUTPUT),
        parameterization=parameterization,
        conditioning="t",
    )
    predicted = denoiser.predict(x_t, jnp.asarray(T)).eps
    return np.sum((np.asarray(predicted) - EPS) ** 2, axis=(1, 2))


@pytest.mark.parametrize("sde", [VPSDE(), VESDE(sigma_max=20.0), LinearPathSDE()])
def test_weight_turns_the_error_of_the_noise_into_that_of_the_prediction(sde, x64):
    alpha, sigma = (np.asarray(c(jnp.asarray(T)))[:, None, None] for c in (sde.alpha, sde.sigma))
    y, s = X + sigma / alpha * EPS, sigma / alpha
    # The output that encodes the truth, and a factor of its error.
    c_skip, c_out = 0.25 / (s**2 + 0.25), s * 0.5 / np.sqrt(s**2 + 0.25)
    norm = np.sqrt(alpha**2 + sigma**2)
    for weight, parameterization, truth, scale in (
        (Sigma2(), "eps", EPS, 1.0),
        (X0(), "x0", X, 1.0),
        (V(), "v", alpha * EPS - sigma * X, 1 / norm),
        (Velocity(), "velocity", EPS - X, 1.0),
        (EDM(sigma_data=0.5), "edm", (X - c_skip * y) / c_out, 1.0),
    ):
        expected = np.sum((scale * (OUTPUT - truth)) ** 2, axis=(1, 2))
        found = np.asarray(weight(sde, jnp.asarray(T))) * errors(sde, parameterization)
        np.testing.assert_allclose(found, expected, rtol=1e-9, err_msg=parameterization)


def test_weights_of_the_log_snr_are_their_formulas(x64):
    sde, t = VPSDE(), jnp.asarray(T)
    snr = np.exp(np.asarray(sde.log_snr(t)))
    assert snr.min() < 5 < snr.max()
    # min-SNR: the weight min(SNR, gamma) of x0's error, which is 1 / SNR of the noise's.
    np.testing.assert_allclose(MinSNR(gamma=5.0)(sde, t), np.minimum(snr, 5) / snr, rtol=1e-12)
    np.testing.assert_allclose(Sigmoid(bias=2.0)(sde, t), np.exp(2) / (np.exp(2) + snr), rtol=1e-12)
    slope = (np.asarray(sde.log_snr(t - 1e-6)) - np.asarray(sde.log_snr(t + 1e-6))) / 2e-6
    np.testing.assert_allclose(G2()(sde, t), slope, rtol=1e-6)


def test_min_snr_needs_its_gamma():
    with pytest.raises(ValueError, match="gamma must be given for name='min_snr'; the paper takes"):
        MinSNR()
    with pytest.raises(ValueError, match="gamma=0"):
        MinSNR(gamma=0)
