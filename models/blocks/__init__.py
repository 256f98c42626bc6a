"""Building blocks that networks share: convolution, attention, embeddings, resampling, checks."""
