"""The parts of objectives: which noise levels are trained, and how much each counts."""
