"""ADM and its classifier against the published ones, and the laws they must obey."""

import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from models.adm import ADM, CHOICES
from models.adm_classifier import POOLS, ADMClassifier
from models.attention import SelfAttention
from models.layers import GroupNorm, ResidualBlock

# Compiling these networks costs far more than running them, so XLA is told not to optimize.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

REFERENCE = Path(__file__).parent / "data" / "adm_reference.npz"

SMALL = {
    "features": 16,
    "channel_multipliers": (1, 2),
    "blocks_per_level": 1,
    "attention_resolutions": (4,),
    "dropout": 0.0,
    "head_width": 8,
}
TINY = SMALL | {"channel_multipliers": (1,), "attention_resolutions": ()}
# From 128 channels on, the published code has as many groups as ours; below, EDM's alone has.
# Dropout is there to show that it does nothing outside of training.
WIDE = SMALL | {"features": 64, "channel_multipliers": (2, 4), "head_width": 64, "dropout": 0.5}
IMPROVED = {"heads": 4, "resample": "conv"}
SMALL_IMPROVED = SMALL | {"features": 128} | IMPROVED
REFERENCE_CASES = {
    "adm": (ADM(**WIDE, num_classes=10, learned_variance=True), [3, 7]),
    "improved": (ADM(**SMALL_IMPROVED, learned_variance=True), None),
    "improved_sum": (ADM(**SMALL_IMPROVED, scale_shift=False), None),
    "edm": (ADM(**SMALL | {"features": 64, "head_width": 64}, num_classes=10), [3, 10]),
} | {
    f"classifier_{pool}": (ADMClassifier(**WIDE, num_classes=10, pool=pool), None) for pool in POOLS
}

LEARNED = {"learned_variance": True}
ADM_256 = LEARNED | {
    "features": 256,
    "channel_multipliers": (1, 1, 2, 2, 4, 4),
    "blocks_per_level": 2,
}
IMAGENET = {"num_classes": 1000}
IMPROVED_64 = LEARNED | IMPROVED | {"features": 128, "attention_resolutions": (16, 8)}
# Counted in the published code, whose class tables lack our last row, for no class: one vector of
# the embedding's 4 * features numbers.
PUBLISHED_COUNTS = {
    "adm_64": (64, ADM(**LEARNED, **IMAGENET), 295_904_454),
    "adm_256_unconditional_and_lsun_bedroom": (256, ADM(**ADM_256), 552_814_086),
    "adm_512": (
        512,
        ADM(**ADM_256 | {"channel_multipliers": (0.5, 1, 1, 2, 2, 4, 4)}, **IMAGENET),
        558_997_638,
    ),
    "edm_64": (64, ADM(**IMAGENET), 295_899_267),
    "improved_cifar10": (
        32,
        ADM(**IMPROVED_64, channel_multipliers=(1, 2, 2, 2)),
        52_546_438,
    ),
    "improved_64": (64, ADM(**IMPROVED_64), 121_063_942),
    "improved_lsun_bedroom": (
        256,
        ADM(
            **ADM_256
            | {"features": 128, "attention_resolutions": (16,), "heads": 1, "resample": "conv"},
            scale_shift=False,
        ),
        113_676_678,
    ),
    "classifier_64": (64, ADMClassifier(blocks_per_level=4), 65_438_568),
    "classifier_256": (
        256,
        ADMClassifier(channel_multipliers=ADM_256["channel_multipliers"]),
        54_096_360,
    ),
}

UNET = ADM(**SMALL, num_classes=3)
CLASSIFIER = ADMClassifier(**TINY, num_classes=3)


def abstract_params(network, size=8, channels=3):
    """The shapes of the parameters, without computing any."""

    def init(key):
        x, cond = jnp.zeros((1, size, size, channels)), jnp.zeros((1,))
        return network.init(key, x, cond, train=False)["params"]

    return jax.eval_shape(init, jax.random.key(0))


def count(network, size):
    """The number of parameters for images of `size`."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract_params(network, size)))


def seeded_params(network, seed=0, size=8, dtype=np.float32):
    """Weights without any zero, drawn in the order of the sorted paths, as for the reference.

    The vector for no class is zero, since the published code has none.
    """
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        u = rng.uniform(-1.0, 1.0, leaf.shape)
        kind = path[-1].key
        if kind == "kernel":
            u = u * math.sqrt(3.0 / math.prod(leaf.shape[:-1]))
        elif kind == "scale":
            u = 1.0 + 0.5 * u
        elif kind == "table":
            u[-1] = 0.0
        else:
            u = {"bias": 0.5, "positions": 1.0}[kind] * u
        return u.astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, abstract_params(network, size))


def seeded_batch(dtype=np.float32, size=8):
    """Two images and noise levels."""
    rng = np.random.default_rng(1)
    return rng.uniform(-1.0, 1.0, (2, size, size, 3)).astype(dtype), np.array([1.5, 2.75], dtype)


def evaluator(network, *labels):
    """The network without dropout, as a function of (params, x, cond)."""
    return lambda params, x, cond: network.apply({"params": params}, x, cond, *labels, train=False)


# Against the published networks


@pytest.mark.parametrize("name", PUBLISHED_COUNTS)
def test_parameter_count_is_the_published_one(name):
    size, network, published = PUBLISHED_COUNTS[name]
    conditional = isinstance(network, ADM) and network.num_classes > 0
    assert count(network, size) == published + conditional * 4 * network.features


@pytest.mark.parametrize("name", REFERENCE_CASES)
def test_output_equals_the_published_code(name):
    """Outputs of the published code with these seeded weights, made outside this repository.

    A submodule that is renamed may change the order of the draws: that too fails here.
    """
    network, labels = REFERENCE_CASES[name]
    params = seeded_params(network)
    with np.load(REFERENCE) as reference:
        total = sum(float(np.sum(leaf, dtype=np.float64)) for leaf in jax.tree.leaves(params))
        assert total == pytest.approx(float(reference[f"{name}_weight_sum"])), "other weights"
        f = quick_jit(evaluator(network, *([] if labels is None else [jnp.array(labels)])))
        y = f(params, reference["x"], reference["cond"])
        expected = reference[f"{name}_y"]
    assert np.max(np.abs(y - expected)) < 1e-5 * np.max(np.abs(expected))


# The networks as functions


@pytest.mark.parametrize("resample", CHOICES["resample"])
@pytest.mark.parametrize("scale_shift", [False, True])
@pytest.mark.parametrize(("learned_variance", "outputs"), [(False, 2), (True, 4)])
def test_every_kind_of_network_keeps_the_resolution(
    resample, scale_shift, learned_variance, outputs
):
    network = ADM(
        **SMALL,
        resample=resample,
        scale_shift=scale_shift,
        learned_variance=learned_variance,
        out_channels=2,
    )
    x, cond = jnp.zeros((3, 8, 8, 1)), jnp.zeros((3,))

    def init_with_output():
        return network.init_with_output(jax.random.key(0), x, cond, train=False)

    y, _ = jax.eval_shape(init_with_output)
    assert y.shape == (3, 8, 8, outputs)
    assert y.dtype == jnp.float32


def test_labels_name_classes_and_none_is_the_last():
    network = ADM(**TINY, num_classes=3)
    params, (x, cond) = seeded_params(network), seeded_batch()
    params["classes"]["table"][-1] = 0.3
    f = quick_jit(lambda params, labels: evaluator(network, labels)(params, x, cond))
    first, second, nothing = (f(params, jnp.array(labels)) for labels in ([0, 1], [0, 2], [3, 3]))
    np.testing.assert_allclose(first[0], second[0], atol=1e-5)
    assert not np.allclose(first[1], second[1], atol=1e-2)
    assert not np.allclose(first, nothing, atol=1e-2)
    np.testing.assert_allclose(quick_jit(evaluator(network))(params, x, cond), nothing, atol=1e-5)


@pytest.mark.parametrize(
    ("network", "blocks", "attentions"),
    [(UNET, 10, 4), (ADMClassifier(**TINY, pool="adaptive"), 3, 1)],
    ids=["adm", "classifier"],
)
def test_blocks_start_as_their_shortcuts_and_the_network_at_almost_zero(
    network, blocks, attentions
):
    """The last layers of all of them start so; ones that are not used are never compiled."""
    ends = ("conv_1/kernel", "output/kernel", "output_conv/kernel")

    @quick_jit
    def initial(key):
        params = network.init(key, *seeded_batch(), train=False)["params"]
        leaves = jax.tree_util.tree_leaves_with_path(params)
        named = {jax.tree_util.keystr(p, simple=True, separator="/"): leaf for p, leaf in leaves}
        return {name: leaf for name, leaf in named.items() if name.endswith(ends)}

    leaves = initial(jax.random.key(0))
    assert len(leaves) == blocks + attentions + 1
    for name, leaf in leaves.items():
        assert 0 < np.max(np.abs(leaf)) < 1e-4, name


@pytest.mark.parametrize("network", [UNET, CLASSIFIER], ids=["adm", "classifier"])
def test_layers_have_the_published_epsilon_and_the_dtype_asked_for(network):
    """No output shows 1e-5 from 1e-6 where variances are near 1, nor where bfloat16 begins."""
    epsilons, dtypes = set(), set()

    def note(call, args, kwargs, context):
        if isinstance(context.module, GroupNorm):
            epsilons.add(context.module.epsilon)
        if isinstance(context.module, ResidualBlock | SelfAttention):
            dtypes.update(arg.dtype.name for arg in args if hasattr(arg, "dtype"))
        return call(*args, **kwargs)

    mixed, params = evaluator(network.copy(compute_dtype="bfloat16")), abstract_params(network)
    with nn.intercept_methods(note):
        y = jax.eval_shape(mixed, params, *seeded_batch())
    assert (epsilons, dtypes, y.dtype) == ({1e-5}, {"bfloat16"}, jnp.float32)


def test_bfloat16_is_close_to_float32():
    network = ADM(**TINY)
    params, (x, cond) = seeded_params(network), seeded_batch()
    exact = quick_jit(evaluator(network))(params, x, cond)
    rough = quick_jit(evaluator(network.copy(compute_dtype="bfloat16")))(params, x, cond)
    assert 0 < np.max(np.abs(rough - exact)) < 2e-2 * np.max(np.abs(exact))


def test_rematerialization_changes_no_gradient_and_every_parameter_learns():
    network = ADM(**TINY, num_classes=3)
    params, (x, cond) = seeded_params(network), seeded_batch()

    def gradients(network):
        def loss(params):
            y = evaluator(network, jnp.array([0, 3]))(params, x, cond)
            return jnp.mean(jnp.square(y - 1.0))

        traced = quick_jit(jax.grad(loss)).trace(params)
        leaves = jax.tree_util.tree_leaves_with_path(traced.lower().compile()(params))
        names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        return "remat" in str(traced.jaxpr), dict(
            zip(names, [leaf for _, leaf in leaves], strict=True)
        )

    kept_marked, kept = gradients(network)
    again_marked, again = gradients(network.copy(remat=True))
    assert (kept_marked, again_marked) == (False, True)
    table = kept["classes/table"]
    assert list(np.any(table != 0, axis=1)) == [True, False, False, True]
    for name, gradient in kept.items():
        if not name.endswith("/key/bias"):  # softmax ignores what is added to every logit
            size = np.max(np.abs(gradient))
            assert size > 1e-6, name
            np.testing.assert_allclose(again[name], gradient, atol=1e-5 * size, err_msg=name)


def test_derivatives_agree_in_float64():
    """J v by forward mode equals a central difference, and <u, J v> = <J^T u, v>."""
    network = ADM(**TINY)
    with jax.enable_x64(True), jax.numpy_rank_promotion("raise"):
        params = seeded_params(network, dtype=np.float64)
        x, cond = seeded_batch(np.float64)
        rng = np.random.default_rng(2)
        u, v = rng.normal(size=x.shape), rng.normal(size=x.shape)

        def f(x):
            return evaluator(network)(params, x, cond)

        y, jvp = quick_jit(lambda x, v: jax.jvp(f, (x,), (v,)))(x, v)
        (vjp,) = quick_jit(lambda x, u: jax.vjp(f, x)[1](u))(x, u)
        assert y.dtype == jvp.dtype == vjp.dtype == jnp.float64
        h, step = 1e-6, quick_jit(f)
        difference = (step(x + h * v) - step(x - h * v)) / (2 * h)
        np.testing.assert_allclose(jvp, difference, rtol=1e-6, atol=1e-6)
        assert np.vdot(u, jvp) == pytest.approx(np.vdot(vjp, v), rel=1e-10)


def test_dropout_acts_in_training():
    network = ADM(**TINY | {"dropout": 0.5})
    params, (x, cond) = seeded_params(network), seeded_batch()

    @quick_jit
    def trained(key):
        rngs = {"dropout": key}
        return network.apply({"params": params}, x, cond, train=True, rngs=rngs)

    first, again, second = (trained(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second, atol=1e-2)


# Refusals

INVALID = [
    ({"resample": "fir"}, "'fir'; valid is one of 'block', 'conv'"),
    ({"compute_dtype": "float16"}, "'float16'; valid is one of 'float32', 'bfloat16'"),
    ({"features": 2}, "an even integer, 4 or more"),
    ({"features": 33}, "an even integer, 4 or more"),
    ({"features": 36}, "a layer of 36 channels has 9 groups|multiple of 32"),
    ({"channel_multipliers": ()}, "one number per level"),
    ({"channel_multipliers": (1, 0)}, "an integer of 4 or more"),
    ({"channel_multipliers": (0.3, 1)}, "an integer of 4 or more"),
    ({"channel_multipliers": (1, 1, 1, 1, 1)}, "at most 4 levels for config.data.image_size=8"),
    ({"blocks_per_level": 0}, "a positive integer"),
    ({"attention_resolutions": (8, 16)}, r"any of \[8, 4\].*or \(\)"),
    ({"dropout": 1.0}, r"in \[0, 1\)"),
    ({"heads": -1}, "an integer, 0 to follow head_width"),
    ({"heads": 3}, "divides the channels of every layer that attends, here 32"),
    ({"head_width": 0}, "a positive integer"),
    ({"head_width": 24}, "divides the channels of every layer that attends, here 32"),
    ({"head_width": 32, "attention_resolutions": (8,)}, "every layer that attends, here 16"),
    ({"head_width": 32, "channel_multipliers": (2, 1), "attention_resolutions": (8,)}, "here 16"),
]
INVALID_ADM = [
    ({"num_classes": -1}, "an integer, 0 for no classes"),
    ({"out_channels": 0}, "a positive integer"),
]
INVALID_CLASSIFIER = [
    ({"pool": "max"}, "'max'; valid is one of 'attention', 'adaptive', 'spatial', 'spatial_v2'"),
    ({"num_classes": 0}, "a positive integer"),
]


@pytest.mark.parametrize(
    ("network", "fields", "message"),
    [(ADM, *case) for case in INVALID + INVALID_ADM]
    + [(ADMClassifier, *case) for case in INVALID[:1] + INVALID_CLASSIFIER],
)
def test_invalid_field_is_named_before_anything_is_computed(network, fields, message):
    network = network(**SMALL | fields)
    field = next(iter(fields))
    with pytest.raises(ValueError, match=message) as error:
        network.validate(8, 3)
    assert str(error.value).startswith(f"config.model.{field} is ")
    with pytest.raises(ValueError, match=message):
        abstract_params(network)


@pytest.mark.parametrize("network", [ADM, ADMClassifier])
def test_images_that_do_not_fit_are_refused(network):
    network = network(**SMALL)
    for size, channels in ((0, 3), (8, 0)):
        with pytest.raises(ValueError, match=r"config\.data\.(image_size|channels) is 0"):
            network.validate(size, channels)
    with pytest.raises(ValueError, match=r"at most 1 levels for config\.data\.image_size=7"):
        network.validate(7, 3)
    with pytest.raises(ValueError, match="8x16 pixels; valid is square"):
        network.init(jax.random.key(0), jnp.zeros((1, 8, 16, 3)), jnp.zeros(1), train=False)


@pytest.mark.parametrize("features", [12, 36, 96])
def test_group_check_refuses_exactly_what_the_layers_refuse(features):
    class Unchecked(ADM):
        @nn.nowrap
        def validate(self, image_size, channels):
            pass

    fields = SMALL | {
        "features": features,
        "channel_multipliers": (0.5, 1),
        "heads": 1,
    }

    def refuses(act):
        try:
            act()
        except ValueError:
            return True
        return False

    checked = refuses(lambda: ADM(**fields).validate(8, 3))
    assert checked == refuses(lambda: abstract_params(Unchecked(**fields)))


def test_defaults_are_those_for_imagenet_64():
    ADM().validate(64, 3)
    ADMClassifier().validate(64, 3)
