"""One file per configuration; `default.py` lists every field."""
