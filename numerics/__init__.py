"""Numerical tools: arrays and keys, traces of Jacobians, integration of ODEs and SDEs."""
