"""Compress images to a file by a checkpoint, without loss, and decompress them.

The file has fewer bytes the better the model is: the average image takes the bits of the discrete
bound, config.discrete_bound. Decompression computes what compression did. It needs the same
checkpoint, and numbers of the network that are the same bit for bit: the same software on the same
kind of device.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import metadata
from typing import Any

import jax
import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from bounds.bits_back import ImageCodec
from data.pictures import read_images
from data.streamed import Converted
from denoising import Denoiser
from errors import CodecError, ConfigError, FileError
from experiment.experiment import Experiment
from experiment.images import Images as ImageData
from experiment.images import as_images
from files.codes import read_code, write_code
from files.nested import flatten
from files.paths import AnyPath
from files.pictures import image_grid, write_png
from files.writing import write_npz
from jobs.restore import load_checkpoint
from jobs.workdir import Workdir
from numerics.arrays import digest
from training.hosts import require_same

Images = UInt8[np.ndarray, "count height width channels"]

_SHOWN = 100  # images of a picture


def compress(
    experiment: Experiment,
    workdir: Workdir,
    *,
    source: AnyPath,
    target: AnyPath,
    lanes: int = 4,
    checkpoint: int | None = None,
    ema: str = "",
) -> None:
    """Write images to a file, and print its size.

    Args:
        experiment: its model has no classes; its config.discrete_bound has the times.
        workdir: the folder of the run.
        source: the images, as in config.task.input: files, or test, test:3, test:0-7.
        target: the file; it must not exist.
        lanes: images that the network sees at a time. More are faster, and each costs some bytes.
        checkpoint, ema: the step and the average of the parameters.

    Raises:
        ConfigError, WorkdirError, CheckpointError: before anything is computed.
        HostsError: if hosts have other images or another checkpoint.
        CodecError: if the network's output is not finite.
    """
    if target.exists():
        raise ConfigError(f"--target={target} exists already; give the name of a new file")
    if lanes < 1:
        raise ConfigError(f"--lanes={lanes} must be at least 1")
    levels = _read_levels(experiment, str(source))
    codec = _codec(experiment, workdir, min(lanes, len(levels)), checkpoint, ema)
    about = {
        "images": len(levels),
        "sha256_images": digest(levels),
        "model": _model(experiment, codec.denoiser),
        "software": _software(),
    }
    require_same("the images or the checkpoint", flatten(about, "."))
    codes = codec.encode(levels, _progress("compressing"))
    about["unread"] = [code.unread for code in codes]
    size = write_code(target, about, [code.words for code in codes])
    random = sum(code.random_bits for code in codes)
    net = sum(code.words.size for code in codes) * 32 - random
    print(
        f"{len(levels)} images in {size:,} bytes: {target}\n"
        f"{net / levels.size:.4f} bits/dim, plus {random // 8:,} bytes to start; compare "
        "the discrete bound of --mode=eval"
    )


def decompress(
    experiment: Experiment,
    workdir: Workdir,
    *,
    source: AnyPath,
    target: AnyPath,
    preview: bool = False,
    checkpoint: int | None = None,
    ema: str = "",
) -> None:
    """Write the images of a compressed file as an .npz of uint8, NHWC, and a picture beside it.

    Args:
        experiment, workdir, checkpoint, ema: those of `compress`.
        source: the file.
        target: the .npz; it must not exist.
        preview: whether the file may be cut short. Then there are fewer images, and the last ones
            are guesses.

    Raises:
        ConfigError: for a file that is missing, damaged, cut short, or of another model.
        WorkdirError, CheckpointError: as in `compress`.
        CodecError: if the images are not those that were compressed.
    """
    where = f"--source={source}"
    if target.exists() or target.suffix != ".npz":
        raise ConfigError(f"--target={target} exists or is no .npz; give the name of a new .npz")
    try:
        about, stacks = read_code(source, where, partial=preview)
    except FileError as error:
        raise ConfigError(str(error)) from error
    codec = _codec(experiment, workdir, len(stacks), checkpoint, ema)
    ours, theirs = flatten(_model(experiment, codec.denoiser), "."), flatten(about["model"], ".")
    if differing := [name for name in ours if theirs.get(name) != ours[name]]:
        raise ConfigError(
            f"{where} was compressed by another model; what differs: {', '.join(differing)}. Give "
            "the run, --checkpoint, --ema and configuration of --mode=compress"
        )
    if preview:
        groups = list(codec.preview(stacks, about["images"], _progress("previewing")))
        levels = np.concatenate(groups).astype(np.uint8)
    else:
        levels = _decoded(codec, stacks, about, where)
    images = _images_of(experiment).as_samples(levels)
    write_npz(target, {"samples": images}, compress=True)
    write_png(target.with_suffix(".png"), image_grid(images[:_SHOWN]))
    print(f"{len(images)} of {about['images']} images: {target}, {target.with_suffix('.png')}")


def _decoded(codec: ImageCodec, stacks: list[Any], about: dict[str, Any], where: str) -> Images:
    """Return the gray levels of a whole file, compared with what was compressed."""
    codes = list(zip(stacks, about["unread"], strict=True))
    try:
        levels = codec.decode(codes, about["images"], _progress("decompressing")).astype(np.uint8)
        if digest(levels) == about["sha256_images"]:
            return levels
        problem = "the images differ from those that were compressed"
    except CodecError as error:
        problem = str(error)
    was, now = about["software"], _software()
    raise CodecError(
        f"{where} cannot be decompressed here: {problem}. The network's numbers must be the same "
        f"bit for bit; compressed with {_phrase(was)}, here with {_phrase(now)}"
    )


def _images_of(experiment: Experiment) -> ImageData:
    return as_images(experiment.data, "compression", "take a model of images")


def _codec(
    experiment: Experiment, workdir: Workdir, lanes: int, checkpoint: int | None, ema: str
) -> ImageCodec:
    model = experiment.model
    model.require_no_image("compression")
    experiment.ends.require_noise("compression")
    if model.num_classes:
        raise ConfigError(
            f"config.model.num_classes={model.num_classes}: images are compressed without classes; "
            "take an unconditional model"
        )
    options = experiment.likelihood.discrete_bound.options
    loaded = load_checkpoint(experiment, workdir, checkpoint, ema, options.needs)
    denoiser, times = experiment.likelihood.discrete_bound.of(loaded, experiment.data.limits)
    return ImageCodec(
        denoiser=denoiser,
        times=times,
        pixel_levels=_images_of(experiment).pixel_levels,
        options=options,
        shape=experiment.data.shape,
        lanes=lanes,
    )


def _model(experiment: Experiment, denoiser: Denoiser) -> dict[str, Any]:
    """Return what compression and decompression must have in common, as it reads from JSON."""
    levels = _images_of(experiment).pixel_levels
    # The process, if it is learned; the uncertainty, if variances need it.
    parts = denoiser.network, denoiser.sde, denoiser.uncertainty
    found = {
        "parameters": experiment.parallel.digest(parts),
        "shape": experiment.data.shape,
        "levels": [levels.gray_levels, levels.low, levels.high],
        "config": experiment.sections("sde", "denoiser", "discrete_bound"),
    }
    return json.loads(json.dumps(found))


def _read_levels(experiment: Experiment, source: str) -> Images:
    data = _images_of(experiment)

    def test_images() -> Converted:
        test = data.splits.test
        return Converted(test, np.arange(len(test)), data.in_unit_range)

    try:
        images = read_images(source, data.shape, test_images, convert=False)
    except ValueError as error:
        raise ConfigError(f"--source: {error}") from error
    levels = data.quantizer.quantize(images)
    if np.abs(data.in_unit_range(levels) - images).max() > 1e-4:
        count = data.quantizer.gray_levels
        raise ConfigError(
            f"--source={source} has gray levels that the model lacks, which has {count}; without "
            "loss only its own can be compressed"
        )
    return levels


def _software() -> dict[str, str]:
    names = ("jax", "jaxlib", "numpy", "constriction")
    return {name: metadata.version(name) for name in names} | {"device": jax.default_backend()}


def _phrase(software: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in software.items())


def _progress(doing: str) -> Callable[[Sequence[int]], Iterable[int]]:
    return partial(tqdm, desc=doing, dynamic_ncols=True, mininterval=0.5)
