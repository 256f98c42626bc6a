"""The networks that come along, as runs."""

from pathlib import Path

import jax
import numpy as np
import pytest
from command_line import write_images

from configs import vdm_digits, vp_digits
from errors import ConfigError
from experiment.build import build
from jobs.exchange import import_checkpoint
from jobs.shipped import load
from jobs.workdir import Workdir


@pytest.mark.slow
def test_import_makes_a_run_of_a_network_that_comes_along(tmp_path, capsys):
    workdir = Workdir(tmp_path / "run")
    import_checkpoint(build(vp_digits.get_config()), workdir, source=Path("digits"))
    shipped, ours = load("digits").checkpoint, load(workdir.path).checkpoint
    assert f"imported step {shipped.step} of this project" in capsys.readouterr().out
    assert ours.step == shipped.step
    found, expected = map(jax.tree.leaves, (ours.denoiser, shipped.denoiser))
    assert len(found) > 50
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_another_network_is_refused_and_nothing_is_written(tmp_path):
    workdir = Workdir(tmp_path / "run")
    refused = r"--source=digits .*config\.sde\.name was 'vp', is 'learned'\. Give "
    with pytest.raises(ConfigError, match=refused + r"--config=configs/vp_digits\.py$"):
        import_checkpoint(build(vdm_digits.get_config()), workdir, source=Path("digits"))
    assert not workdir.path.exists()


@pytest.mark.parametrize(
    ("field", "value", "said"), [("centered", False, "True, is False"), ("channels", 3, "1, is 3")]
)
def test_data_that_the_network_does_not_take_are_refused(tmp_path, field, value, said):
    config = vp_digits.get_config()
    config.data[field] = value
    config.data.name = str(write_images(tmp_path / "x.npz", 80, 16, channels=config.data.channels))
    workdir = Workdir(tmp_path / "run")
    with pytest.raises(ConfigError, match=rf"config\.data\.{field} was {said}\. Give "):
        import_checkpoint(build(config), workdir, source=Path("digits"))
    assert not workdir.path.exists()


def test_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits").write_bytes(b"no checkpoint")
    workdir = Workdir("run")
    with pytest.raises(ConfigError, match="digits"):
        import_checkpoint(build(vp_digits.get_config()), workdir, source=Path("digits"))
