"""Numbers that judge a model: they know features and statistics, never networks of ours."""
