"""One file a configuration; `default.py` has every field."""
