"""Checkpoints that other projects have published, read without executing any of their code.

`formats.read` reads a file of any format into nested dicts of NumPy arrays. `mapping` translates
their tensors to our parameters by rules that cover every tensor and parameter. The other modules
have the rules of one project each, in two functions. `is_checkpoint(tree)` recognizes its files.
`import_state(tree, network, image_size, template, source=...)` translates them, where

    tree          what `formats.read.read` returns
    network       our network, with the settings that the file was trained with
    image_size    height of the images it was trained on
    template      its abstract parameters, as `jax.eval_shape` makes them, or a function that does
    source        the file's name in messages, such as its path

It raises ValueError for a file that is not of the project or does not fit the network.
"""
