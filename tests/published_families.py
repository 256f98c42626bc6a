"""Networks of EDM, OpenAI and diffusers for the tests of what the originals compute.

References are outputs of the originals themselves in double precision, by PyTorch. Of most networks
the fixtures hold the names and shapes only: `drawn` makes the same weights there and here. Two are
files as torch.save and diffusers write them. For outputs that are compared in float64, the
generator computed embeddings, softmax and filters in float64 too, where the originals cast to
float32.
"""

import functools
import gzip
import json

import jax
import numpy as np
from networks import abstract_params
from published_files import DATA, SIZE, TOLERANCE, drawn

from models.adm import ADM
from models.ddpm import DDPM
from models.ncsnpp import NCSNpp

NAMES = json.loads(gzip.decompress((DATA / "families_names.json.gz").read_bytes()))

SMALL = {"blocks_per_resolution": 1, "attention_resolutions": (4,), "dropout": 0.0}
SONG = SMALL | {"features": 16, "channel_multipliers": (1, 2)}
NCSN = {"embedding": "fourier", "resample": "fir", "progressive_input": "residual"}
SKIP = {"progressive_input": "input_skip", "progressive_output": "output_skip"}
DHARIWAL = SMALL | {"features": 64, "channel_multipliers": (1, 2)}
OPENAI = SMALL | {"features": 128, "channel_multipliers": (1, 1)}
GUIDED = ADM(**OPENAI, num_classes=3, learned_variance=True)
GOOGLE = DDPM(**SMALL, features=128, channel_multipliers=(1, 1), decoder_attention="block")
LARGE = NCSNpp(
    **SMALL, **SKIP, features=32, channel_multipliers=(1, 4), embedding="fourier", resample="fir"
)
EDM_SONG = NCSNpp(**SONG, **SKIP, num_classes=3, augment_labels=9)
EDM_ADM = ADM(**DHARIWAL, num_classes=3, augment_labels=9)


@functools.cache
def tree(name):
    """The content of a published file."""
    if "tensors" in (names := NAMES[name]):
        return {"config": names["config"], "tensors": drawn(names["tensors"])}
    return drawn(names)


def imported(family, content, network, **options):
    return family.import_state(
        content, network, SIZE, abstract_params(network), source="file", **options
    ).params


def broken(content, **changes):
    """The content with some tensors replaced, or removed where None."""
    return {name: value for name, value in (content | changes).items() if value is not None}


def assert_close(ours, name):
    with np.load(DATA / "families_outputs.npz") as references:
        theirs = references[name]
    assert ours.shape == theirs.shape
    assert np.max(np.abs(ours - theirs)) < TOLERANCE * np.max(np.abs(theirs))


def classes_in_float64(content):
    """sqrt(n) W e_k + b for every class, and b for "no class", as SongUNet adds them."""
    weight, bias = (np.float64(content[f"map_label.{part}"]) for part in ("weight", "bias"))
    one_hot = np.eye(weight.shape[1] + 1, weight.shape[1])
    return np.sqrt(weight.shape[1]) * one_hot @ weight.T + bias


def assert_equal(params, others):
    assert jax.tree.all(jax.tree.map(np.array_equal, params, others))
