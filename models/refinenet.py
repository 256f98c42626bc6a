"""The network of NCSN and NCSNv2: a dilated ResNet whose stages a RefineNet joins.

    encoder   h_l = stage l of two residual blocks,  y = x + F(x),
              F = conv . act . norm . conv . act . norm
    decoder   from the coarsest stage to the finest,  r_l = refine(h_l, r_{l+1}),
                  a = act(sum_i up(conv(units(input i)))),       units:  x + F(x), F without norm,
                  r = units(a + p_1 + p_2),                      p_k = conv(pool(p_{k-1})), p_0 = a
    output    conv(act(norm(r_0)))

The first stages halve the resolution. The last two keep it and dilate their convolutions by 2 and 4
instead (Yu and Koltun 2016, arXiv:1511.07122). The sum over the inputs is RefineNet's
multi-resolution fusion, the sum over p_k its chained residual pooling (Lin et al. 2017,
arXiv:1611.06612, Section 3.2). The coarsest stage has one input, which is not convolved for fusion.

NCSN (Song and Ermon 2019, arXiv:1907.05600, Appendix A) conditions every normalization on the noise
level, normalizes before all other convolutions and pools too, and pools by means over 5x5 pixels.
NCSNv2 (Song and Ermon 2020, arXiv:2006.09011) does not depend on the noise level, normalizes in the
encoder and before the output only, and pools by maxima. Both normalize by InstanceNorm++
(`models/blocks/instance_norm.py`).
"""

import functools
import math
import operator
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from models.blocks.checks import (
    check_choices,
    check_data,
    check_field,
    check_images,
    check_integers,
)
from models.blocks.convolution import image_convolution
from models.blocks.embeddings import Labels
from models.blocks.instance_norm import InstanceNormPlus, Timestep
from models.blocks.layers import (
    ACTIVATIONS,
    FeatureMaps,
    Images,
    cast,
    follow_input,
)
from models.blocks.parameters import Conv
from models.blocks.resample import average_downsample, bilinear_upsample

Normalization = Callable[..., nn.Module]  # (name=...) makes a module that maps (x, timestep) to x

# Per stage from fine to coarse, for images of about this size: width over `features`, dilation.
SIZES: dict[int, tuple[tuple[int, int], ...]] = {
    64: ((1, 1), (2, 1), (2, 2), (2, 4)),
    128: ((1, 1), (2, 1), (2, 1), (4, 2), (4, 4)),
    256: ((1, 1), (2, 1), (2, 1), (2, 1), (4, 2), (4, 4)),
}
IMPLEMENTATIONS = ("jax", "pytorch")


def conv(
    x: FeatureMaps,
    features: int,
    *,
    name: str,
    kernel_size: int = 3,
    dilation: int = 1,
    bias: bool = True,
) -> FeatureMaps:
    """Convolve without a change of resolution: (b, h, w, c) -> (b, h, w, features).

    Kernel and bias start as in PyTorch, uniformly within 1 / sqrt(fan_in) of zero.
    """
    bound = 1.0 / math.sqrt(kernel_size**2 * x.shape[-1])

    def init(key: Array, shape: tuple[int, ...], dtype: jnp.dtype) -> Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return Conv(
        features,
        kernel_size=(kernel_size, kernel_size),
        kernel_dilation=(dilation, dilation),
        use_bias=bias,
        kernel_init=init,
        bias_init=init,
        promote_dtype=follow_input,
        conv_general_dilated=image_convolution,
        name=name,
    )(x)


# Pooling and interpolation are shifted slices, as in models/blocks/resample.py. On the CPU they are
# at least 4 times as fast as XLA's windows, and 8 times as fast as `jax.image.resize`.


@jax.checkpoint
def max_pool(x: Images) -> Images:
    """Take maxima over windows of 5x5 pixels: (b, h, w, c) to the same shape.

    The backward pass computes them again, since their comparisons would take 7 times x's memory.
    """
    return _pool(x, jnp.maximum, -jnp.inf)


def mean_pool(x: Images) -> Images:
    """Take means over windows of 5x5 pixels, zero outside the image, to the same shape."""
    return _pool(x, jnp.add, 0.0) / 25


def _pool(x: Images, combine: Callable[[Images, Images], Images], outside: float) -> Images:
    for axis in (1, 2):
        margins = [(2, 2) if a == axis else (0, 0) for a in range(x.ndim)]
        padded, n = jnp.pad(x, margins, constant_values=outside), x.shape[axis]
        shifts = [lax.slice_in_dim(padded, i, i + n, axis=axis) for i in range(5)]
        x = functools.reduce(combine, shifts)
    return x


class EncoderBlock(nn.Module):
    """A residual block of the encoder.

    Attributes:
        features: channels of the output.
        norm: makes the normalizations.
        dilation: dilation of its convolutions.
        entry: whether the block is the first of a stage below the finest. Then the shortcut is a
            convolution, and without dilation the resolution halves. Otherwise the number of
            channels stays.
        activation: a name in `layers.ACTIVATIONS`.
    """

    features: int
    norm: Normalization
    dilation: int = 1
    entry: bool = False
    activation: str = "elu"

    @nn.compact
    def __call__(
        self, x: Images, timestep: Timestep
    ) -> Float[Array, "batch height_out width_out {self.features}"]:
        """Map (b, h, w, c) to (b, h', w', features); h' = h/2 or h."""
        act = ACTIVATIONS[self.activation]
        h = act(self.norm(name="norm_0")(x, timestep))
        h = conv(h, x.shape[-1], dilation=self.dilation, name="conv_0")
        h = act(self.norm(name="norm_1")(h, timestep))
        h = conv(h, self.features, dilation=self.dilation, name="conv_1")
        if not self.entry:
            return x + h
        if self.dilation > 1:
            return conv(x, self.features, dilation=self.dilation, name="shortcut") + h
        x, h = average_downsample(x), average_downsample(h)
        return conv(x, self.features, kernel_size=1, name="shortcut") + h


class ConvUnit(nn.Module):
    """x + conv(act(conv(act(x)))), with an optional normalization before each activation.

    Attributes:
        norm: makes the normalizations; None for none.
        activation: a name in `layers.ACTIVATIONS`.
    """

    norm: Normalization | None = None
    activation: str = "elu"

    @nn.compact
    def __call__(self, x: Images, timestep: Timestep) -> Images:
        """Map (b, h, w, c) to the same shape."""
        h = x
        for i in range(2):
            if self.norm is not None:
                h = self.norm(name=f"norm_{i}")(h, timestep)
            h = conv(ACTIVATIONS[self.activation](h), x.shape[-1], bias=False, name=f"conv_{i}")
        return x + h


class Fusion(nn.Module):
    """Multi-resolution fusion: the sum of convolved inputs at the resolution of the first.

    Attributes:
        features: channels of the output.
        norm: makes normalizations before the convolutions; None for none.
        align_corners: see `bilinear_upsample`.
    """

    features: int
    norm: Normalization | None = None
    align_corners: bool = False

    @nn.compact
    def __call__(
        self, inputs: tuple[FeatureMaps, ...], timestep: Timestep
    ) -> Float[Array, "batch height width {self.features}"]:
        """Map inputs of size h or h/2, the first of h, to (b, h, w, features)."""
        convolved = []
        for i, h in enumerate(inputs):
            if self.norm is not None:
                h = self.norm(name=f"norm_{i}")(h, timestep)
            h = conv(h, self.features, name=f"conv_{i}")
            if h.shape[1] < inputs[0].shape[1]:
                h = bilinear_upsample(h, align_corners=self.align_corners)
            convolved.append(h)
        return functools.reduce(operator.add, convolved)


class ChainedPooling(nn.Module):
    """Chained residual pooling: a + p_1 + p_2, by normalized means or by maxima.

    Attributes:
        norm: makes the normalizations before means; None for maxima.
        activation: a name in `layers.ACTIVATIONS`.
    """

    norm: Normalization | None = None
    activation: str = "elu"

    @nn.compact
    def __call__(self, x: Images, timestep: Timestep) -> Images:
        """Map (b, h, w, c) to the same shape."""
        total = pooled = ACTIVATIONS[self.activation](x)
        for i in range(2):
            if self.norm is None:
                pooled = max_pool(pooled)
            else:
                pooled = mean_pool(self.norm(name=f"norm_{i}")(pooled, timestep))
            pooled = conv(pooled, x.shape[-1], bias=False, name=f"conv_{i}")
            total = total + pooled
        return total


class RefineBlock(nn.Module):
    """Block of the decoder: units per input, fusion, chained pooling, units.

    Attributes:
        features: channels of the output; those of the input if there is but one.
        output_units: number of units at the end.
        norm: makes the normalizations; None for none.
        align_corners: see `bilinear_upsample`.
        activation: a name in `layers.ACTIVATIONS`.
    """

    features: int
    output_units: int = 1
    norm: Normalization | None = None
    align_corners: bool = False
    activation: str = "elu"

    @nn.compact
    def __call__(
        self, inputs: tuple[FeatureMaps, ...], timestep: Timestep
    ) -> Float[Array, "batch height width {self.features}"]:
        """Map inputs of size h or h/2, the first of h, to (b, h, w, features)."""

        def units(h: FeatureMaps, count: int, name: str) -> FeatureMaps:
            for i in range(count):
                h = ConvUnit(self.norm, self.activation, name=f"{name}_unit_{i}")(h, timestep)
            return h

        h, *others = (units(h, 2, f"input_{i}") for i, h in enumerate(inputs))
        if others:
            fusion = Fusion(self.features, self.norm, self.align_corners, name="fusion")
            h = fusion((h, *others), timestep)
        h = ChainedPooling(self.norm, self.activation, name="pooling")(h, timestep)
        return units(h, self.output_units, "output")


class RefineNet(nn.Module):
    """Network of the module docstring, from images and noise levels to images.

    Attributes:
        features: channels of the finest stage.
        size: 64, 128 or 256, for the number of stages published for images of about this size.
        num_timesteps: number of noise levels in NCSN; 0 in NCSNv2, which ignores cond.
        activation: a name in `layers.ACTIVATIONS`.
        implementation: "jax" as in Song et al. 2021, or "pytorch" as in Song and Ermon. In the
            latter, InstanceNorm++ has the unbiased variance over channels, interpolation aligns the
            corners, and, at size 64, the second-last refine block has half the channels.
        out_channels: channels of the output; None for the number of the input.
        compute_dtype: "float32", or "bfloat16" except for parameters, statistics and output.
        remat: compute all blocks again in the backward pass, to save memory.
    """

    features: int = 128
    size: int = 64
    num_timesteps: int = 0
    activation: str = "elu"
    implementation: str = "jax"
    out_channels: int | None = None
    compute_dtype: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Images,
        cond: Float[Array, "batch"],
        labels: Labels | None = None,
        *,
        train: bool,
    ) -> Float[Array, "batch height width channels_out"]:
        """Map images (b, n, n, c) of order 1 and cond (b,) to (b, n, n, out_channels).

        `cond` is rounded to the index 0 .. num_timesteps - 1 of a noise level. The output has the
        dtype of x. `train` has no effect; all networks have this argument.

        Raises:
            ValueError: a field is invalid (`validate`), the images are not square, or labels are
                given.
        """
        check_images(self, x)
        if labels is not None:
            raise ValueError(
                "labels are given to a network without classes; valid is None. Drop the labels, or "
                "choose a network with config.model.num_classes."
            )
        timestep = jnp.round(cond).astype(jnp.int32) if self.num_timesteps else None
        h = conv(cast(x, self.compute_dtype), self.features, name="input_conv")
        h = self._decode(self._encode(h, timestep), timestep).astype(x.dtype)
        h = ACTIVATIONS[self.activation](self._norm()(name="output_norm")(h, timestep))
        return conv(h, self.out_channels or x.shape[-1], name="output_conv")

    @nn.nowrap
    def validate(self, image_size: int, channels: int) -> None:
        check_choices(self, {"implementation": IMPLEMENTATIONS})
        check_data(image_size, channels)
        check_integers(self, features=2, num_timesteps=0, out_channels=1)
        check_field(self, "size", self.size in SIZES, f"one of {', '.join(map(str, SIZES))}")
        factor = 2 ** sum(dilation == 1 for _, dilation in SIZES[self.size][1:])
        if image_size % factor:
            raise ValueError(
                f"config.data.image_size={image_size}; valid is a multiple of {factor}, as the "
                "resolution halves from stage to stage. Crop or pad the data."
            )

    # The methods below create submodules in the scope of __call__, their only caller.

    @nn.nowrap
    def _encode(self, h: FeatureMaps, timestep: Timestep) -> list[FeatureMaps]:
        """Return the features of every stage, from fine to coarse."""
        make = functools.partial(
            nn.remat(EncoderBlock) if self.remat else EncoderBlock,
            norm=self._norm(),
            activation=self.activation,
        )
        outputs = []
        for i, (width, dilation) in enumerate(SIZES[self.size]):
            for j in range(2):
                block = make(
                    width * self.features,
                    dilation=dilation,
                    entry=i > 0 and j == 0,
                    name=f"encoder_{i}_block_{j}",
                )
                h = block(h, timestep)
            outputs.append(h)
        return outputs

    @nn.nowrap
    def _decode(self, outputs: list[FeatureMaps], timestep: Timestep) -> FeatureMaps:
        """Return the features of the finest stage, refined by those of all the others."""
        pytorch = self.implementation == "pytorch"
        widths = [width for width, _ in SIZES[self.size]]
        # A refine block has the width of the next finer stage; in JAX at size 64, that of its own.
        refined = widths if self.size == 64 and not pytorch else [1, *widths[:-1]]
        coarser: list[FeatureMaps] = []
        for i in reversed(range(len(widths))):
            block = (nn.remat(RefineBlock) if self.remat else RefineBlock)(
                refined[i] * self.features,
                output_units=3 if i == 0 else 1,
                norm=self._norm() if self.num_timesteps else None,
                align_corners=pytorch,
                activation=self.activation,
                name=f"refine_{i}",
            )
            coarser = [block((outputs[i], *coarser), timestep)]
        return coarser[0]

    @nn.nowrap
    def _norm(self) -> Normalization:
        return functools.partial(
            InstanceNormPlus, self.num_timesteps, unbiased=self.implementation == "pytorch"
        )
