"""Build the network of a configuration, with what its output means."""

import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.tree_util import Partial
from jaxtyping import Array, Key

from denoising import CONDITIONINGS, Denoiser
from errors import ConfigError
from experiment.data import Data
from experiment.experiment import Model
from experiment.images import as_images
from experiment.kinds import require_kind
from experiment.options import DenoiserOptions
from experiment.reader import Reader, config_errors
from models import NETWORKS
from models.blocks.resample import average_downsample
from models.energy import energies, energy_gradient
from numerics.parameterizations import PARAMETERIZATIONS
from numerics.pixel_levels import PixelLevels
from sde_lib import SDE
from training.objective import Objective
from training.parallel import DataParallel
from training.sharding import Sharding


@functools.cache
def abstract_params(network: nn.Module, shape: tuple[int, ...]) -> Any:
    """Return the shapes of a network's parameters for rows of data of a shape."""
    # Many configurations have the same network, and some take seconds to trace.
    return jax.eval_shape(partial(init_network, network, shape), jax.random.key(0))


def init_model(model: Model, shape: tuple[int, ...], key: Key[Array, ""]) -> Any:
    """Return the parameters of the network; with those of a process, if that has some."""
    network = init_network(model.network, shape, key)
    process = model.sde.parameters()
    return {"network": network, "process": process} if process else network


# Jitted, so that experiments with the same network share one trace of it.
@partial(jax.jit, static_argnums=(0, 1), inline=True)
def init_network(network: nn.Module, shape: tuple[int, ...], key: Key[Array, ""]) -> Any:
    """Return the parameters of a network for rows of data of a shape."""
    images, condition = jnp.zeros((1, *shape)), jnp.zeros(1)
    shrunk = shrinking(network)
    image: dict[str, Any] = {} if shrunk is None else {"image": shrunk(images)}
    return network.init(key, images, condition, **image, train=False)["params"]


def shrinking(network: nn.Module) -> Callable[[Array], Array] | None:
    """Return the function from images to the small ones of an upsampler; None for other networks.

    They are means over blocks of pixels, as in the published training.
    """
    factor = getattr(network, "upsampling", 1)
    return None if factor == 1 else partial(average_downsample, factor=factor)


def build_model(reader: Reader, sde: SDE, loss: Objective, data: Data, sharding: Sharding) -> Model:
    """Build the network of a configuration, and the denoiser made of it.

    Raises:
        ConfigError: for the first field that is wrong.
    """
    require_kind("model", reader.lookup("model", NETWORKS), NETWORKS, data.kind)
    network = reader.build_named("model", NETWORKS)
    options = reader.build("denoiser", DenoiserOptions)
    pixel_levels = _pixel_levels(options, data)
    if pixel_levels is not None:
        network = _with_outputs(network, data.shape[-1] * pixel_levels.gray_levels)
    with config_errors("model"):
        network.validate(*data.shape[-2:])
    _check_timesteps(reader, sde, network, loss, options)
    return Model(
        process=reader.config["sde"]["name"],
        sde=sde,
        name=reader.config["model"]["name"],
        network=network,
        options=options,
        num_classes=getattr(network, "num_classes", 0),
        upsampling=getattr(network, "upsampling", 1),
        denoiser=_denoiser_factory(sde, network, options, pixel_levels, sharding, data.parallel),
    )


def _pixel_levels(options: DenoiserOptions, data: Data) -> PixelLevels | None:
    """Return the gray levels whose probabilities the network predicts, if it does.

    Raises:
        ConfigError: for data that are not on gray levels.
    """
    if not PARAMETERIZATIONS[options.parameterization].of_levels:
        return None
    what = f"config.denoiser.parameterization={options.parameterization!r}"
    images = as_images(data, what, "choose eps")
    if images.dequantization.noisy:
        raise ConfigError(
            f"config.data.dequantization={data.options.dequantization!r} adds noise to gray "
            f"levels, which {what} predicts; choose none or truncated_normal"
        )
    return images.pixel_levels


def _with_outputs(network: nn.Module, channels: int) -> nn.Module:
    """Return a network with as many channels of its output.

    Raises:
        ConfigError: if it has no such field, or predicts a variance too.
    """
    if not hasattr(network, "out_channels") or getattr(network, "learned_variance", False):
        raise ConfigError(
            "config.denoiser.parameterization='levels' needs a network of images without learned "
            "variance; choose config.model.name=ncsnpp"
        )
    return network.clone(out_channels=channels)


def _denoiser_factory(
    sde: SDE,
    network: nn.Module,
    options: DenoiserOptions,
    pixel_levels: PixelLevels | None,
    sharding: Sharding,
    parallel: DataParallel,
) -> Callable[..., Denoiser]:
    """Return the function (params, dropout key or None) -> Denoiser."""
    shared = sharding, parallel
    outputs = network_functions(
        network, energy_gradient if options.energy else network_output, *shared
    )
    scalars = network_functions(network, energies, *shared) if options.energy else None
    learned = bool(sde.parameters())

    def denoiser(params: Any, dropout: Key[Array, ""] | None = None) -> Denoiser:
        process = sde.with_parameters(params["process"]) if learned else sde
        params = params["network"] if learned else params
        given = (params,) if dropout is None else (params, dropout)
        return Denoiser(
            sde=process,
            network=Partial(outputs[dropout is not None], *given),
            energy=None if scalars is None else Partial(scalars[dropout is not None], *given),
            parameterization=options.parameterization,
            conditioning=options.conditioning,
            num_timesteps=options.num_timesteps,
            sigma_data=options.sigma_data,
            sigma_min=options.sigma_min,
            pixel_levels=pixel_levels,
        )

    return denoiser


def network_output(network: Callable[[Array], Array], x: Array) -> Array:
    """Return the output of a network for x: the usual view."""
    return network(x)


@functools.cache
def network_functions(
    network: nn.Module, view: Callable, sharding: Sharding, parallel: DataParallel
) -> tuple[Callable, Callable]:
    """Return the functions of a network without and with dropout.

    `view` maps the network as a function of x, and x, to what is wanted: its output or gradient.

    They are made once per network: jit takes a Partial of the same function for the same, and
    programs of other functions would pile up where experiments are built again and again. They are
    programs themselves, so that those around them, which may call a network several times, trace it
    once.
    """

    def of_whole(params: Any, x: Array, *conditions: Array, **more: Any) -> Any:
        def of_x(x: Array) -> Any:
            return network.apply({"params": params}, x, *conditions, **more)

        return view(of_x, x)

    keep = getattr(network, "remat", False)
    output = sharding.with_whole_parameters(of_whole, parallel, keep=keep)

    def apply(params: Any, x: Array, *conditions: Array, **more: Array) -> Array:
        return output(params, x, *conditions, **more, train=False)

    def apply_with_dropout(
        params: Any, dropout: Array, x: Array, *conditions: Array, **more: Array
    ) -> Array:
        return output(params, x, *conditions, **more, train=True, rngs={"dropout": dropout})

    return jax.jit(apply), jax.jit(apply_with_dropout)


def _check_timesteps(
    reader: Reader, sde: SDE, network: nn.Module, loss: Objective, denoiser: DenoiserOptions
) -> None:
    """Raise ConfigError unless process, objective and network count the same timesteps."""
    count = getattr(sde, "num_timesteps", None)
    trained = getattr(getattr(loss, "times", None), "num_timesteps", None)
    conditioning = CONDITIONINGS[denoiser.conditioning]
    for name, value, used in (
        ("times.num_timesteps", trained, trained is not None),
        ("denoiser.num_timesteps", denoiser.num_timesteps, conditioning.counts),
    ):
        if count and used and value != count:
            raise ConfigError(
                f"config.{name}={value}, but config.sde.num_timesteps={count}; set both to the same"
            )
    if trained is not None and not sde.sigma(jnp.zeros(())) > 0:
        raise ConfigError(
            f"config.times.name={reader.config['times']['name']!r} trains at t = 0 too, where "
            f"config.sde.name={reader.config['sde']['name']!r} has no noise; choose uniform or "
            "stratified, or the sde ddpm, smld or ve (vlb and hybrid need one of these)"
        )
    embedded = getattr(network, "num_timesteps", None)  # the network embeds an integer timestep
    if embedded and not (conditioning.embeds and denoiser.num_timesteps == embedded):
        able = " or ".join(name for name, row in CONDITIONINGS.items() if row.embeds)
        raise ConfigError(
            f"config.model.num_timesteps={embedded} needs config.denoiser.num_timesteps={embedded} "
            f"and conditioning {able}, not num_timesteps="
            f"{denoiser.num_timesteps} and {denoiser.conditioning!r}"
        )
