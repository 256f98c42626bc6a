"""Rules between tensors of others and our parameters."""

import numpy as np
import pytest
from published_files import ARRAY, same

from published import mapping


class Shape:
    def __init__(self, *shape):
        self.shape = shape


@pytest.mark.parametrize(
    ("layout", "theirs", "ours"),
    [
        (mapping.IDENTICAL, (2, 3), (2, 3)),
        (mapping.CONV, (5, 4, 3, 2), (3, 2, 4, 5)),
        (mapping.LINEAR, (5, 4), (4, 5)),
        (mapping.CONV_1X1, (5, 4, 1, 1), (4, 5)),
        (mapping.CONV_1D, (5, 4, 1), (4, 5)),
        (mapping.FLAX_CONV_1X1, (1, 1, 4, 5), (4, 5)),
        (mapping.IMAGE_CHANNELS, (1, 1, 1, 5), (5,)),
    ],
)
def test_layouts_are_inverse(layout, theirs, ours):
    w = np.arange(np.prod(theirs)).reshape(theirs)
    assert layout.to_ours(w).shape == ours
    assert np.array_equal(layout.to_theirs(layout.to_ours(w)), w)


def test_conv_layout_keeps_the_meaning():
    w = np.random.default_rng(0).normal(size=(5, 4, 3, 2))
    assert mapping.CONV.to_ours(w)[2, 1, 3, 4] == w[4, 3, 2, 1]


@pytest.mark.parametrize("order", ["part head channel", "head part channel", "head channel part"])
def test_part_is_cut_out_of_a_fused_matrix(order):
    """Each row says which part, head and channel it is of."""
    sizes = {"part": 3, "head": 2, "channel": 4}
    grids = np.meshgrid(*(np.arange(sizes[word]) for word in order.split()), indexing="ij")
    rows = dict(zip(order.split(), (grid.ravel() for grid in grids), strict=True))
    w = np.stack([rows["part"], rows["head"], rows["channel"]], axis=1)
    for index in range(3):
        value = mapping.part(index, mapping.IDENTICAL, heads=2, order=order).to_ours(w)
        expected = [[index, head, channel] for head in range(2) for channel in range(4)]
        assert value.tolist() == expected
        columns = mapping.part(index, mapping.LINEAR, heads=2, order=order, axis=1).to_ours(w.T)
        assert columns.tolist() == expected


def test_impossible_part_is_refused():
    with pytest.raises(ValueError, match="part 3 of 3"):
        mapping.part(3, mapping.LINEAR)
    with pytest.raises(ValueError, match="order 'part channel'"):
        mapping.part(0, mapping.LINEAR, order="part channel")


RULES = [mapping.LINEAR.weight("a/kernel", "x.weight"), mapping.IDENTICAL.weight("b", "x.bias")]
TEMPLATE = {"a": {"kernel": Shape(3, 2)}, "b": Shape(2)}
THEIRS = {"x.weight": ARRAY, "x.bias": np.ones(2, np.float16)}


def test_translation_and_back():
    params = mapping.translate(RULES, TEMPLATE, THEIRS)
    assert same(params, {"a": {"kernel": ARRAY.T}, "b": np.ones(2, np.float32)})
    assert params["a"]["kernel"].flags.c_contiguous
    back = mapping.translate_back(RULES, params)
    assert same(back, {"x.weight": ARRAY, "x.bias": np.ones(2, np.float32)})


def test_unused_tensors_are_named_by_patterns():
    tensors = THEIRS | {"x.count": np.ones(()), "sigmas": np.ones(7)}
    mapping.translate(RULES, TEMPLATE, tensors, unused=["*.count", "sigmas"])
    with pytest.raises(ValueError, match=r"net\.pt does not fit .*1 surplus: sigmas \(7,\)"):
        mapping.translate(RULES, TEMPLATE, tensors, unused=["*.count"], source="net.pt")


def test_all_misfits_are_told_at_once():
    template = TEMPLATE | {"c": Shape(1), "d": Shape(2, 2)}
    rules = [*RULES, mapping.IDENTICAL.weight("c", "y"), mapping.CONV.weight("d", "x.bias")]
    tensors = {"x.weight": ARRAY.T, "x.bias": np.ones(2), "z": np.ones(4)}
    with pytest.raises(ValueError, match="does not fit this network") as caught:
        mapping.translate(rules, template, tensors)
    for text in (
        "1 missing: y for c (1,)",
        "2 wrongly shaped: x.weight (3, 2) for a/kernel (3, 2), x.bias (2,) for d (2, 2)",
        "1 surplus: z (4,)",
        "Set the fields of config.model",
    ):
        assert text in str(caught.value)


def test_long_lists_of_misfits_are_shortened():
    tensors = THEIRS | {f"more.{i}": np.ones(1) for i in range(30)}
    with pytest.raises(ValueError, match=r"30 surplus: more.0 \(1,\), .* and 28 more"):
        mapping.translate(RULES, TEMPLATE, tensors)


def test_rules_that_miss_a_parameter_are_an_error():
    with pytest.raises(ValueError, match="1 without a rule: b"):
        mapping.translate(RULES[:1], TEMPLATE, THEIRS, unused=["*"])
    with pytest.raises(ValueError, match=r"1 only in the rules: b from x\.bias"):
        mapping.translate(RULES, {"a": TEMPLATE["a"]}, THEIRS)
    with pytest.raises(ValueError, match="1 in two rules: b"):
        mapping.translate([*RULES, RULES[1]], TEMPLATE, THEIRS)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_numbers_that_are_not_finite_are_named(bad):
    with pytest.raises(ValueError, match=r"x\.bias \(b\) has 1 of 2 numbers that are not finite"):
        mapping.translate(RULES, TEMPLATE, THEIRS | {"x.bias": np.array([1.0, bad])})
    with pytest.raises(ValueError, match="b has 1 of 2 numbers"):
        mapping.translate_back(RULES, {"a": {"kernel": ARRAY.T}, "b": np.array([1.0, bad])})


def test_part_has_no_way_back():
    rules = [mapping.part(0, mapping.LINEAR).weight("a", "qkv")]
    with pytest.raises(ValueError, match="1 without an inverse: a as qkv"):
        mapping.translate_back(rules, {"a": ARRAY})


@pytest.mark.parametrize("value", ["1", 1.0, None, [1, 2], [[1], [1, 2]], {}, np.array(["a", "b"])])
def test_what_is_no_array_of_numbers_is_named(value):
    tensors = THEIRS | {"x.bias": value, "more": value}
    with pytest.raises(ValueError, match=r"1 not an array of numbers: x\.bias .*1 surplus: more"):
        mapping.translate(RULES, TEMPLATE, tensors)
