"""Variational bounds on the log-likelihood, in discrete and in continuous time."""
