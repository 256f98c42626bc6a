"""CLIP in the folders of Hugging Face's transformers, such as openai/clip-vit-base-patch32.

    config.json                 sizes of the two towers
    model.safetensors           parameters; or pytorch_model.bin
    vocab.json, merges.txt      the tokenizer
    preprocessor_config.json    mean and standard deviation of images in [0, 1], if it is there

`read_clip` reads such a folder without executing any of its code, and `write_clip` writes one.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from errors import FileError
from files.buckets import remove
from files.copies import local_input
from files.hub import HUB, snapshot
from files.paths import AnyPath
from files.writing import unfinished
from models.clip import CLIP, TowerSize, init_clip
from published.clip_tokenizer import MERGES, VOCABULARY, Tables, Tokenizer, read_tokenizer
from published.formats.read import read
from published.formats.safetensors import write_safetensors
from published.mapping import (
    IDENTICAL,
    LINEAR,
    Rearrangement,
    Weight,
    translate,
    translate_back,
)
from published.pytorch_layers import affine, norm

CONFIG, WEIGHTS, PREPROCESSOR = "config.json", "model.safetensors", "preprocessor_config.json"
_OLD_WEIGHTS = "pytorch_model.bin"
_FILES = (CONFIG, WEIGHTS, VOCABULARY, MERGES)
_LONGEST_JSON = 2**18  # bytes of a config.json
_EXAMPLE = "hf:openai/clip-vit-base-patch32"
# Buffers of old files.
_UNUSED = ("*.position_ids",)
# Of images in [0, 1], for all published networks (arXiv:2103.00020 and its code).
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
# Our field of a tower's size: theirs, and its value where the file leaves it out.
_TOWER = {
    "features": ("hidden_size", {"vision": 768, "text": 512}),
    "depth": ("num_hidden_layers", {"vision": 12, "text": 12}),
    "heads": ("num_attention_heads", {"vision": 12, "text": 8}),
    "hidden": ("intermediate_size", {"vision": 3072, "text": 2048}),
}
_FIELDS = {
    "image_size": ("vision", "image_size", 224),
    "patch_size": ("vision", "patch_size", 32),
    "channels": ("vision", "num_channels", 3),
    "vocabulary": ("text", "vocab_size", 49408),
    "context_length": ("text", "max_position_embeddings", 77),
}


class PublishedCLIP(NamedTuple):
    """What a folder holds.

    Attributes:
        network: the network.
        params: its parameters.
        tokenizer: encodes its texts.
        mean, std: of each channel of images in [0, 1], which the network sees standardized.
    """

    network: CLIP
    params: dict[str, Any]
    tokenizer: Tokenizer
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_clip(name: str, where: str) -> PublishedCLIP:
    """Read a CLIP.

    Args:
        name: a folder, or hf:NAME of the Hugging Face hub, which is downloaded once.
        where: its name at the start of messages, such as "config.guidance.perceptor='a'".

    Raises:
        ValueError: for a folder that is no CLIP, or is damaged; in one line.
        ConnectionError: if it cannot be downloaded.
    """
    folder = _folder(name, where)
    if not folder.is_dir():
        what = "it is a file" if folder.exists() else "there is no such folder"
        raise FileError(f"{where}: {what}; give a folder with {', '.join(_FILES)}, or {_EXAMPLE}")
    weights = WEIGHTS if (folder / WEIGHTS).is_file() else _OLD_WEIGHTS
    for file in (CONFIG, VOCABULARY, MERGES, weights):
        if not (folder / file).is_file():
            missing = WEIGHTS if file == weights else file
            raise FileError(
                f"{where} is no folder of a CLIP: it has no {missing}; give one with "
                f"{', '.join(_FILES)}, or {_EXAMPLE}"
            )
    network = _network(_json(folder / CONFIG, where), where)
    tokenizer = read_tokenizer(folder, network.context_length, where)
    mean, std = _statistics(folder, network, where)
    params = translate(
        rules(network),
        abstract_params(network),
        read(folder / weights),
        unused=_UNUSED,
        source=f"{where}: {weights}",
        remedy=f"Give a folder whose {CONFIG} belongs to its {weights}",
    )
    return PublishedCLIP(network, params, tokenizer, mean, std)


def write_clip(
    folder: AnyPath,
    network: CLIP,
    params: dict[str, Any],
    tables: Tables,
    standardization: tuple[tuple[float, ...], tuple[float, ...]],
) -> None:
    """Write a folder that `read_clip` and transformers read; it replaces an older one.

    Args:
        folder: where to.
        network: the network.
        params: its parameters.
        tables: vocabulary and merges.
        standardization: mean and standard deviation of each channel.
    """
    vocabulary, merges = tables
    mean, std = standardization
    with unfinished(folder) as made:
        made.mkdir()
        write_safetensors(made / WEIGHTS, translate_back(rules(network), params))
        described = _description(network)
        (made / CONFIG).write_text(json.dumps(described, indent=2) + "\n")
        statistics = {"image_mean": mean, "image_std": std}
        (made / PREPROCESSOR).write_text(json.dumps(statistics) + "\n")
        (made / VOCABULARY).write_text(json.dumps(vocabulary, ensure_ascii=False), "utf-8")
        lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
        (made / MERGES).write_text("\n".join(lines) + "\n", "utf-8")
        remove(folder)  # an older one


def abstract_params(network: CLIP) -> Any:
    """Return the shapes of a network's parameters."""
    return jax.eval_shape(lambda key: init_clip(network, key), jax.random.key(0))


def rules(network: CLIP) -> list[Weight]:
    """Return the places of a network's parameters in their files."""
    patches = _patches(network.patch_size, network.channels)
    found = [
        IDENTICAL.weight("class_token", "vision_model.embeddings.class_embedding"),
        patches.weight("patches/kernel", "vision_model.embeddings.patch_embedding.weight"),
        IDENTICAL.weight("image_positions", "vision_model.embeddings.position_embedding.weight"),
        *norm("norm_patches", "vision_model.pre_layrnorm"),  # their spelling
        *norm("norm_image", "vision_model.post_layernorm"),
        LINEAR.weight("image_projection/kernel", "visual_projection.weight"),
        IDENTICAL.weight("words", "text_model.embeddings.token_embedding.weight"),
        IDENTICAL.weight("text_positions", "text_model.embeddings.position_embedding.weight"),
        *norm("norm_text", "text_model.final_layer_norm"),
        LINEAR.weight("text_projection/kernel", "text_projection.weight"),
        IDENTICAL.weight("logit_scale", "logit_scale"),
    ]
    for tower, size in (("vision", network.vision), ("text", network.text)):
        for i in range(size.depth):
            ours, theirs = f"{tower}_tower", f"{tower}_model.encoder.layers.{i}"
            for name, layer in (
                ("query", "self_attn.q_proj"),
                ("key", "self_attn.k_proj"),
                ("value", "self_attn.v_proj"),
                ("attention", "self_attn.out_proj"),
                ("mlp_0", "mlp.fc1"),
                ("mlp_1", "mlp.fc2"),
            ):
                found += affine(f"{ours}/{name}_{i}", f"{theirs}.{layer}", LINEAR)
            found += norm(f"{ours}/norm_attention_{i}", f"{theirs}.layer_norm1")
            found += norm(f"{ours}/norm_mlp_{i}", f"{theirs}.layer_norm2")
    return found


def _patches(size: int, channels: int) -> Rearrangement:
    """Return the layout of the first layer: (out, c, p, p), ours (p p c, out)."""
    return Rearrangement(
        lambda w: w.transpose(2, 3, 1, 0).reshape(-1, w.shape[0]),
        lambda p: p.reshape(size, size, channels, -1).transpose(3, 2, 0, 1),
    )


def _folder(name: str, where: str) -> Path:
    if not name.startswith(HUB):
        return local_input(name)
    found = snapshot(
        name,
        where,
        kind="model",
        patterns=(*_FILES, PREPROCESSOR, _OLD_WEIGHTS),
        packages="huggingface_hub tokenizers",
        local=f"a local folder with {', '.join(_FILES)}",
    )
    return Path(found)


def _json(path: Path, where: str) -> dict[str, Any]:
    """Return the object in a small JSON file."""
    try:
        if path.stat().st_size > _LONGEST_JSON:
            raise ValueError(f"it is longer than {_LONGEST_JSON} bytes")
        found = json.loads(path.read_text("utf-8"))
        if not isinstance(found, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, RecursionError) as error:
        raise FileError(f"{where}: its {path.name} is damaged ({error}); get it again") from error
    return found


def _network(described: dict[str, Any], where: str) -> CLIP:
    """Return the network that config.json describes."""
    if (kind := described.get("model_type", "clip")) != "clip":
        raise FileError(
            f"{where} has a network {kind!r:.40}, not 'clip'; give one such as {_EXAMPLE}"
        )
    parts = {name: described.get(f"{name}_config") or {} for name in ("vision", "text")}
    if not all(isinstance(part, dict) for part in parts.values()):
        raise FileError(f"{where}: its {CONFIG} describes no towers; give one such as {_EXAMPLE}")
    values: dict[str, Any] = {
        field: parts[part].get(theirs, default)
        for field, (part, theirs, default) in _FIELDS.items()
    }
    end = parts["text"].get("eos_token_id", 49407)
    # The files of OpenAI say 2, and mean the last token.
    values["end_token"] = values["vocabulary"] - 1 if end == 2 else end
    values["embedding"] = described.get("projection_dim", 512)
    epsilons = {part.get("layer_norm_eps", 1e-5) for part in parts.values()}
    acts = {part.get("hidden_act", "quick_gelu") for part in parts.values()}
    try:
        if epsilons != {1e-5}:
            raise ValueError(f"layer_norm_eps={max(epsilons)!r:.40}; valid is 1e-05")
        if len(acts) > 1:
            raise ValueError(f"the towers have different activations, {sorted(map(str, acts))}")
        sizes = {
            name: TowerSize(
                **{
                    ours: part.get(field, default[name])
                    for ours, (field, default) in _TOWER.items()
                }
            )
            for name, part in parts.items()
        }
        network = CLIP(**values, vision=sizes["vision"], text=sizes["text"], activation=acts.pop())
        network.validate()
    except (TypeError, ValueError) as error:
        raise FileError(f"{where}: its {CONFIG} describes no CLIP: {error}") from error
    return network


def _statistics(
    folder: Path, network: CLIP, where: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel."""
    path = folder / PREPROCESSOR
    found = _json(path, where) if path.is_file() else {}
    mean, std = found.get("image_mean", _MEAN), found.get("image_std", _STD)
    for values in (mean, std):
        numbers = isinstance(values, list | tuple) and all(
            isinstance(v, int | float) and np.isfinite(v) for v in values
        )
        if not numbers or len(values) != network.channels or min(std) <= 0:
            raise FileError(
                f"{where}: its {PREPROCESSOR} must have image_mean and image_std for "
                f"{network.channels} channels"
            )
    return tuple(map(float, mean)), tuple(map(float, std))


def _description(network: CLIP) -> dict[str, Any]:
    """Return the config.json of a network."""
    parts: dict[str, dict[str, Any]] = {"vision": {}, "text": {}}
    for field, (part, theirs, _) in _FIELDS.items():
        parts[part][theirs] = getattr(network, field)
    for name, part in parts.items():
        size = getattr(network, name)
        part |= {theirs: getattr(size, ours) for ours, (theirs, _) in _TOWER.items()}
        part |= {"hidden_act": network.activation, "projection_dim": network.embedding}
    end = network.end_token
    parts["text"] |= {"eos_token_id": end, "bos_token_id": end - 1, "pad_token_id": end}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": network.embedding,
        "vision_config": parts["vision"],
        "text_config": parts["text"],
    }
