"""Data sets: readers, preparation, value ranges, and batches as functions of seed and step."""
