"""Numerical tools without a model: arrays and keys, traces of Jacobians, ODE and SDE integration."""
