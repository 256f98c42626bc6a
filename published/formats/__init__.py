"""Checkpoint file formats, read without running any code that is stored in them."""
