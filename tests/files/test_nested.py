"""Nested dicts and their flat form."""

from files.nested import flatten, numbers, unflatten


def test_flatten_names_leaves_by_their_path_in_order():
    tree = {"b": {"d": 1, "c": {"e": 2}}, "a": 3, "empty": {}}
    assert list(flatten(tree).items()) == [("b/d", 1), ("b/c/e", 2), ("a", 3)]
    assert flatten(tree, ".") == {"b.d": 1, "b.c.e": 2, "a": 3}


def test_unflatten_is_the_inverse():
    tree = {"b": {"d": 1, "c": {"e": 2}}, "a": 3}
    assert unflatten(flatten(tree)) == tree
    assert flatten(tree, ".") == {"b.d": 1, "b.c.e": 2, "a": 3}


def test_numbers_are_the_leaves_that_are_no_lists_or_texts():
    tree = {"loss": 1.0, "groups": [1.0, 2.0], "levels": {"test": {"-1.50": 0.25, "name": "a"}}}
    assert numbers(tree) == {"loss": 1.0, "levels/test/-1.50": 0.25}
