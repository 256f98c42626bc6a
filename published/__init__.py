"""Checkpoints that other projects have published, read without their code and without running any.

`formats.read` turns a file of any format into nested dicts of NumPy arrays. `mapping` holds the
rules between their tensors and our parameters, every one of which is accounted for. The other
modules hold the rules of one project each: `is_checkpoint(tree)` recognizes its files, and
`import_state(tree, network, image_size, template, source=...)` translates them.
"""
