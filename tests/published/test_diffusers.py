"""Networks of diffusers: imported, they compute what the originals compute.

How the outputs were made is in published_families.py.
"""

import numpy as np
import pytest
from networks import compiled
from published_families import (
    GOOGLE,
    GUIDED,
    LARGE,
    assert_close,
    assert_equal,
    broken,
    imported,
    tree,
)
from published_files import DATA, LABEL, TIMES, images

from errors import FileError
from models.ddpm import DDPM
from models.ncsnpp import NCSNpp
from published import diffusers
from published.formats import read

SIGMA = 0.01 * 5000.0**TIMES


@pytest.mark.slow
def test_ddpm_of_diffusers_computes_as_the_original():
    params = imported(diffusers, tree("diffusers_ddpm"), GOOGLE)
    assert_close(compiled(GOOGLE)(params, images(), LABEL), "diffusers_ddpm")


@pytest.mark.slow
def test_ncsnpp_of_diffusers_computes_as_the_original():
    params = imported(diffusers, tree("diffusers_ncsnpp"), LARGE)
    x = 2 * images() - 1  # center_input_sample
    assert_close(compiled(LARGE)(params, x, np.log(SIGMA)), "diffusers_ncsnpp")


@pytest.mark.slow
def test_a_folder_of_diffusers_computes_as_the_original():
    network = LARGE.clone(features=8, channel_multipliers=(1, 1), attention_resolutions=())
    params = imported(diffusers, read.read(DATA / "diffusers"), network)
    x = 2 * images() - 1
    assert_close(compiled(network)(params, x, np.log(SIGMA)), "file_diffusers")


@pytest.mark.slow
def test_ddpm_may_be_given_as_settings_of_ncsnpp():
    content = tree("diffusers_ddpm")
    network = NCSNpp(dropout=0.0, **diffusers.settings(content["config"]))
    assert_equal(imported(diffusers, content, network), imported(diffusers, content, GOOGLE))


@pytest.mark.slow
def test_old_names_of_diffusers_are_known():
    content = tree("diffusers_ncsnpp")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    renamed = {}
    for name, value in content["tensors"].items():
        for new_part, old_part in old.items():
            name = name.replace(f".{new_part}.", f".{old_part}.")
        renamed[name] = value
    frequencies = renamed["time_proj.weight"]
    expected = imported(diffusers, content, LARGE)
    both = content | {"tensors": renamed | {"time_proj.W": frequencies}}
    assert_equal(imported(diffusers, both, LARGE), expected)
    oldest = broken(renamed, **{"time_proj.weight": None, "time_proj.W": frequencies})
    assert_equal(imported(diffusers, content | {"tensors": oldest}, LARGE), expected)


def test_settings_that_a_folder_needs_are_told():
    content = tree("diffusers_ddpm")
    with pytest.raises(ValueError, match="file does not fit this network") as error:
        diffusers.import_state(content, DDPM(features=64), 16, {}, source="file")
    assert str(error.value).endswith(
        "Set --config.model.features=128 '--config.model.channel_multipliers=(1, 1)' "
        "--config.model.blocks_per_resolution=1 '--config.model.attention_resolutions=(4,)' "
        "--config.model.decoder_attention=block --config.data.image_size=8"
    )
    with pytest.raises(ValueError, match=r"config.model.name='adm'; .* 'ddpm' and 'ncsnpp'"):
        imported(diffusers, content, GUIDED)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ddpm", {"freq_shift": 0}, "freq_shift=0; valid is 1"),
        ("ddpm", {"norm_eps": 1e-5}, "norm_eps=1e-05; valid is 1e-06"),
        ("ddpm", {"attention_head_dim": 8}, "attention_head_dim=8; valid is None"),
        ("ddpm", {"downsample_padding": None}, "downsample_padding=None; valid is 0"),
        ("ddpm", {"norm_num_groups": None}, "norm_num_groups=None; valid is a positive integer"),
        ("ddpm", {"block_out_channels": [128, 192]}, "multiples of the first"),
        ("ddpm", {"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "their mirror image"),
        ("ddpm", {"down_block_types": ["ResnetDownsampleBlock2D"] * 2}, "valid is DownBlock2D"),
        ("ddpm", {"sample_size": None}, "no sample_size"),
        ("ddpm", {"layers_per_block": None}, "not that of a UNet2DModel"),
        ("ddpm", {"block_out_channels": [128]}, "not that of a UNet2DModel"),
        ("ncsnpp", {"norm_num_groups": 32}, "norm_num_groups=32; valid is None"),
        ("ncsnpp", {"block_out_channels": [32, 64]}, "attention at 64.*128 or more"),
        ("ncsnpp", {"center_input_sample": False}, "center_input_sample=False; valid is True"),
        ("ncsnpp", {"mid_block_scale_factor": 1}, "mid_block_scale_factor=1; valid is 1.414"),
    ],
)
def test_what_no_network_of_ours_computes_is_refused(name, changes, message):
    content = tree(f"diffusers_{name}")
    content = content | {"config": content["config"] | changes}
    with pytest.raises(FileError, match=rf"^file: config.json .*{message}"):
        imported(diffusers, content, GOOGLE)
