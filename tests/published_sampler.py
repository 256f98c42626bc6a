"""Song et al.'s sampler (arXiv:2011.13456) in NumPy, from the paper and its code's behavior.

N steps start at N even times from 1 to t_min. Each corrects at its time, then predicts with the
coefficients of the timestep below its time; the mean of the last prediction is the sample.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass
class PublishedSampler:
    """A process, "vp", "subvp" or "ve", and a network in continuous time or of N timesteps."""

    kind: str
    count: int
    continuous: bool = True
    beta: tuple = (0.1, 20.0)
    sigma: tuple = (0.01, 50.0)

    @cached_property
    def betas(self):
        return np.linspace(self.beta[0], self.beta[1], self.count) / self.count

    @cached_property
    def noises(self):
        """Variances 1 - alpha_bar of the discrete VP process."""
        return 1 - np.cumprod(1 - self.betas)

    @cached_property
    def sigmas(self):
        return np.exp(np.linspace(*np.log(self.sigma), self.count))

    def level(self, t):
        """The noise level of the process in continuous time."""
        if self.kind == "ve":
            return self.sigma[0] * (self.sigma[1] / self.sigma[0]) ** t
        low, high = self.beta
        variance = 1 - np.exp(-(t**2) * (high - low) / 2 - t * low)
        return variance if self.kind == "subvp" else np.sqrt(variance)

    def score(self, network, x, t):
        """The score of networks as published: eps for VP, sigma times the score for VE."""
        if self.kind == "ve" and self.continuous:
            return network(2 * x - 1, np.log(self.level(t))) / self.level(t)
        if self.kind == "ve":
            label = int(np.round((1 - t) * (self.count - 1)))
            return network(2 * x - 1, label) / self.sigmas[::-1][label]
        if self.continuous:
            return -network(x, 999 * t) / self.level(t)
        label = t * (self.count - 1)
        return -network(x, label) / np.sqrt(self.noises[int(label)])

    def drift_and_diffusion(self, t):
        if self.kind == "ve":
            return 0.0, self.level(t) ** 2 * 2 * np.log(self.sigma[1] / self.sigma[0])
        rate = self.beta[0] + t * (self.beta[1] - self.beta[0])
        discount = 1 - (1 - self.level(t)) ** 2 if self.kind == "subvp" else 1.0
        return -rate / 2, rate * discount

    def forward_step(self, t):
        """Scale and added variance of one step of the forward process."""
        i = int(t * (self.count - 1))
        if self.kind == "ve":
            return 1.0, self.sigmas[i] ** 2 - (self.sigmas[i - 1] ** 2 if i else 0.0)
        if self.kind == "vp":
            return np.sqrt(1 - self.betas[i]), self.betas[i]
        f, g2 = self.drift_and_diffusion(t)
        return 1 + f / self.count, g2 / self.count

    def predict(self, predictor, flow, x, score, t):
        """The mean and the noise's standard deviation of a predictor's step."""
        half = 0.5 if flow else 1.0
        scale, added = self.forward_step(t)
        if predictor == "euler_maruyama":
            f, g2 = self.drift_and_diffusion(t)
            mean = x - (f * x - half * g2 * score) / self.count
            return mean, 0.0 if flow else np.sqrt(g2 / self.count)
        if predictor == "reverse_diffusion":
            mean = x - ((scale - 1) * x - half * added * score)
            return mean, 0.0 if flow else np.sqrt(added)
        std = np.sqrt(added)
        if self.kind == "ve":
            late = self.sigmas[int(t * (self.count - 1))] ** 2
            std = np.sqrt((late - added) * added / late)
        return (x + added * score) / scale, std

    def correct(self, corrector, x, network, t, noise, snr):
        score = self.score(network, x, t)
        h = 2 * self.forward_step(t)[0] ** 2
        if corrector == "langevin":
            sizes = [np.linalg.norm(a.reshape(len(x), -1), axis=1).mean() for a in (noise, score)]
            h *= (snr * sizes[0] / sizes[1]) ** 2
        else:
            h *= (snr * self.level(t)) ** 2
        return x + h * score + np.sqrt(2 * h) * noise

    def sample(
        self, network, draw, *, t_min, predictor, corrector, flow=False, snr=0.16, corrector_steps=1
    ):
        """Sample with a network (x, label) -> output, and draw() -> standard normal noise."""
        x = draw() * (self.sigma[1] if self.kind == "ve" else 1.0)
        mean = x
        for t in np.linspace(1, t_min, self.count):
            for _ in range(corrector_steps if corrector != "none" else 0):
                x = mean = self.correct(corrector, x, network, t, draw(), snr)
            if predictor != "none":
                score = self.score(network, x, t)
                mean, std = self.predict(predictor, flow, x, score, t)
                x = mean + std * draw()
        return mean
