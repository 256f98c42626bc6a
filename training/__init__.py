"""Training: the step and its state, data parallelism, checkpoints, and the log of scalars."""
