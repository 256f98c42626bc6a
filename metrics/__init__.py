"""Metrics of samples and likelihoods: they see features and statistics, never our networks."""
