"""Experiments: from a configuration to data, model, sampler, tasks and trainer."""
