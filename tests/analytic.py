r"""Distributions known exactly at every noise level: the independent reference of other tests.

If x_0 is a mixture of Gaussians N(m_k, C_k) with weights w_k, then x_t = alpha x_0 + sigma eps is
the mixture of N(alpha m_k, alpha^2 C_k + sigma^2 I) with the same weights. Its density, its score
and its moments have closed forms. A single component gives a Gaussian. Given a measurement
y = A x_0 + noise, x_0 is a mixture again. With the components as classes, p(k | x_t) and the score
given the class have closed forms.
"""

import dataclasses
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from denoising import Denoiser
from guidance.classifier import Classifier


@dataclass(frozen=True)
class Mixture:
    """weights (k,), means (k, d) and covariances (k, d, d), in float64; samples are (batch, d)."""

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    @property
    def dims(self):
        return self.means.shape[1]

    @property
    def mean(self):
        return self.weights @ self.means

    @property
    def covariance(self):
        centered = self.means - self.mean
        between = np.einsum("k,ki,kj->ij", self.weights, centered, centered)
        return np.einsum("k,kij->ij", self.weights, self.covariances) + between

    def marginal(self, sde, t):
        """The mixture that x_t follows at one time t."""
        t = jnp.asarray(t, float)
        alpha, sigma = float(sde.alpha(t)), float(sde.sigma(t))
        noise = sigma**2 * np.eye(self.dims)
        return Mixture(self.weights, alpha * self.means, alpha**2 * self.covariances + noise)

    def sample(self, seed, count):
        rng = np.random.default_rng(seed)
        component = rng.choice(len(self.weights), count, p=self.weights)
        roots = np.linalg.cholesky(self.covariances)
        noise = rng.normal(size=(count, self.dims))
        return self.means[component] + np.einsum("bij,bj->bi", roots[component], noise)

    def component_logs(self, x):
        """log(weight_k N(x; m_k, C_k)) in nats of the rows of x, in NumPy's float64: (batch, k)."""
        centered = np.asarray(x, np.float64)[:, None] - self.means
        solved = np.linalg.solve(self.covariances, centered[..., None])[..., 0]
        logs = -0.5 * np.sum(centered * solved, axis=-1) + np.log(self.weights)
        return logs - 0.5 * np.linalg.slogdet(2 * math.pi * self.covariances)[1]

    def log_prob(self, x):
        """Log-density in nats of the rows of x, in NumPy's float64."""
        logs = self.component_logs(x)
        top = logs.max(axis=1)
        return top + np.log(np.sum(np.exp(logs - top[:, None]), axis=1))

    def score(self, x):
        """Gradient of `log_prob` at the rows of x."""
        x = jnp.asarray(x)
        tables = tuple(table.astype(x.dtype) for table in self._tables())
        one, zero = jnp.ones(len(x), x.dtype), jnp.zeros(len(x), x.dtype)
        return _score(tables, x, one, zero)

    def nearest(self, x):
        """For each row of x, the component whose mean is nearest."""
        return np.argmin(np.sum((np.asarray(x)[:, None] - self.means) ** 2, axis=-1), axis=1)

    def denoiser(self, sde):
        """A Denoiser whose network computes the exact score, for items of any shape.

        With labels, it is the score given the component; the label after the last means no class.
        """
        network = Partial(_network, sde, self._tables())
        return Denoiser(sde=sde, network=network, parameterization="score", conditioning="t")

    def energy_denoiser(self, sde):
        """The same with its energy, log p_t up to a constant of t."""
        energy = Partial(_energy, sde, self._tables())
        return dataclasses.replace(self.denoiser(sde), energy=energy)

    def classifier(self, sde):
        """The exact p(k | x_t) of the components, as a Classifier of items of any shape."""
        network = Partial(_classify, sde, self._tables())
        return Classifier(sde=sde, network=network, conditioning="t")

    def component(self, k):
        """The Gaussian of one component."""
        return gaussian(self.means[k], self.covariances[k])

    def posterior(self, matrix, y, noise):
        """The mixture that x follows given y = matrix x + noise eps, eps ~ N(0, I); y is (rows,).

        Each component is conditioned as a Gaussian; its weight is multiplied by its N(y; ...).
        """
        measured = matrix @ self.covariances
        covariances = measured @ matrix.T + noise**2 * np.eye(len(y))
        residuals = y - self.means @ matrix.T
        gains = np.linalg.solve(covariances, measured).transpose(0, 2, 1)
        measurement = Mixture(self.weights, self.means @ matrix.T, covariances)
        evidence = measurement.component_logs(np.asarray(y)[None])[0]
        weights = np.exp(evidence - evidence.max())
        means = self.means + np.einsum("kij,kj->ki", gains, residuals)
        return Mixture(weights / weights.sum(), means, self.covariances - gains @ measured)

    def _tables(self):
        tables = self.weights, self.means, *np.linalg.eigh(self.covariances)
        return jax.tree.map(jnp.asarray, tables)


def _network(sde, tables, x, t, labels=None):
    tables = jax.tree.map(lambda table: table.astype(x.dtype), tables)
    flat = x.reshape(len(x), -1)
    return _score(tables, flat, sde.alpha(t), sde.sigma(t), labels).reshape(x.shape)


def _energy(sde, tables, x, t):
    tables = jax.tree.map(lambda table: table.astype(x.dtype), tables)
    logs, _ = _components(tables, x.reshape(len(x), -1), sde.alpha(t), sde.sigma(t))
    return jax.nn.logsumexp(logs, axis=1)


def _classify(sde, tables, x, t):
    tables = jax.tree.map(lambda table: table.astype(x.dtype), tables)
    # A Classifier divides what it shows its network by the size of x_t.
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    flat = x.reshape(len(x), -1) * jnp.hypot(alpha, sigma)[:, None]
    logits, _ = _components(tables, flat, alpha, sigma)
    return logits, flat


def _score(tables, x, alpha, sigma, labels=None):
    logs, pulls = _components(tables, x, alpha, sigma)
    shares = jax.nn.softmax(logs)
    if labels is not None:
        classes = logs.shape[1]
        chosen = jax.nn.one_hot(labels, classes, dtype=x.dtype)
        shares = jnp.where(labels[:, None] == classes, shares, chosen)
    return -jnp.sum(shares[..., None] * pulls, axis=1)


def _components(tables, x, alpha, sigma):
    """The log of each component's share of the density, up to a constant, and its negative score.

    Each is computed in the eigenbasis of its covariance, where the noisy one is diagonal too.
    """
    weights, means, eigenvalues, eigenvectors = tables
    centered = x[:, None] - alpha[:, None, None] * means[None]
    rotated = jnp.einsum("kij,bki->bkj", eigenvectors, centered)
    variances = alpha[:, None, None] ** 2 * eigenvalues[None] + sigma[:, None, None] ** 2
    logs = jnp.log(weights)[None] - 0.5 * jnp.sum(
        rotated**2 / variances + jnp.log(variances), axis=-1
    )
    return logs, jnp.einsum("kij,bkj->bki", eigenvectors, rotated / variances)


def gaussian(mean, covariance):
    return Mixture(np.ones(1), np.asarray(mean)[None], np.asarray(covariance)[None])


def gaussian_ode_solution(data, sde, x, t):
    """The state at t of the probability-flow ODE from x at t = 1, for a diagonal Gaussian.

    The standardized state is constant in time.
    """

    def spread(t):
        alpha, sigma = (float(a(jnp.float32(t))) for a in (sde.alpha, sde.sigma))
        variances = np.diag(data.covariances[0])
        return alpha * data.means[0], np.sqrt(alpha**2 * variances + sigma**2)

    (mean, deviation), (mean_t, deviation_t) = spread(1.0), spread(t)
    return mean_t + deviation_t * (x - mean) / deviation


def standardized_mixture(dims=2):
    """Four unequal components in the first two dimensions; zero mean and unit covariance in all.

    Its difference from VP's prior N(0, I) at t = 1 is then of third order in alpha(1).
    """
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    means = np.array([[1.0, 1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    raw = Mixture(weights, means, np.stack([0.04 * np.eye(2)] * 4))
    whiten = np.linalg.inv(np.linalg.cholesky(raw.covariance))
    means = np.pad((means - raw.mean) @ whiten.T, ((0, 0), (0, dims - 2)))
    covariance = np.eye(dims)
    covariance[:2, :2] = whiten @ raw.covariances[0] @ whiten.T
    return Mixture(weights, means, np.stack([covariance] * 4))


def assert_samples_follow(x, truth, *, bias=0.0, deviations=4.5):
    """Compare mean, covariance, component weights and component widths of samples of a mixture.

    The tolerance is `deviations` standard errors, and `bias` where the step size leaves one.
    """
    x = np.asarray(x, np.float64)
    mean, covariance, count = truth.mean, truth.covariance, len(x)
    variance = np.diag(covariance)
    errors = (x.mean(axis=0) - mean) / np.sqrt(variance / count)
    assert np.abs(errors).max() < deviations, f"mean is off by {errors} standard errors"

    difference = np.cov(x.T) - covariance
    allowed = deviations * np.sqrt((np.outer(variance, variance) + covariance**2) / count)
    allowed += bias * np.sqrt(np.outer(variance, variance))
    assert np.all(np.abs(difference) < allowed), f"covariance is off by {difference}"
    total = np.trace(difference) / np.trace(covariance)
    assert abs(total) < deviations * np.sqrt(2 / x.size) + bias, f"variance is off by {total:.1%}"

    component = truth.nearest(x)
    share = np.bincount(component, minlength=len(truth.weights)) / count
    errors = (share - truth.weights) / np.sqrt(truth.weights * (1 - truth.weights) / count)
    assert np.abs(errors).max() < deviations, f"weights are off by {errors} standard errors"
    # The components differ in the first two dimensions, whose width settles last.
    narrow = truth.covariances[component][:, :2, :2]
    centered = (x - truth.means[component])[:, :2]
    squares = np.einsum("bi,bij,bj->b", centered, np.linalg.inv(narrow), centered) / 2
    width = squares.mean() - 1
    assert abs(width) < deviations / np.sqrt(count) + 2 * bias, f"widths are off by {width:.1%}"
