"""Evaluation: the metrics of a run's samples and likelihoods, their tables and comparisons."""
