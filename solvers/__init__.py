"""Solver families beyond Predictor-Corrector, one file each."""
