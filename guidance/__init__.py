"""Guidance: a denoiser conditioned on a class or on a measurement is again a denoiser."""
