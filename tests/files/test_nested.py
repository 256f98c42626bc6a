"""Nested dicts and their flat form."""

from files.nested import flatten, unflatten


def test_flatten_names_leaves_by_their_path_in_order():
    tree = {"b": {"d": 1, "c": {"e": 2}}, "a": 3, "empty": {}}
    assert list(flatten(tree).items()) == [("b/d", 1), ("b/c/e", 2), ("a", 3)]
    assert flatten(tree, ".") == {"b.d": 1, "b.c.e": 2, "a": 3}


def test_unflatten_is_the_inverse():
    tree = {"b": {"d": 1, "c": {"e": 2}}, "a": 3}
    for separator in "/.":
        assert unflatten(flatten(tree, separator), separator) == tree
