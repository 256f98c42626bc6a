"""Jobs on a working directory: train, sample, measure moments, restore, plan, cache results."""
