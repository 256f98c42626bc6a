"""Checkpoints that other projects have published, read without their code and without running any.

`files.read` turns a file into nested dicts of NumPy arrays, whatever its format. `mapping` holds
the rules between their tensors and our parameters, every one of which is accounted for. The other
modules hold the rules for one project each: `recognises(tree)` tells whether a file's content is of
this project, `import_state(tree, network, image_size, template, source=...)` translates it.
"""
