"""Files of every family through main.py: imported, sampled from, exported; and files that are not.

The files are those of tests/test_published_*.py, which know what the networks in them compute.
"""

import atexit
import functools
import gzip
import json
import pickle
import re
import shutil
import tempfile
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from command_line import ROOT, run, samples_of, snapshot

from errors import ConfigError
from experiment.build import build, build_network
from experiment.configurations import load_configuration
from jobs.exchange import export_checkpoint
from jobs.restore import load_checkpoint
from jobs.workdir import Workdir
from published import exchange
from published.formats import read
from published.formats.torch_writer import write_torch
from training.checkpoints import Checkpoints

DATA = ROOT / "tests" / "fixtures" / "published"
VP, VE = "configs/vp_cifar10.py", "configs/ve_cifar10.py"
SMALL = {
    "data.image_size": 8,
    "model.channel_multipliers": (1, 1),
    "model.blocks_per_resolution": 1,
    "model.attention_resolutions": (),
    "model.dropout": 0.0,
    "training.batch_size": 4,
    "sampling.steps": 2,
    "eval.batch_size": 4,
}
SCORE_SDE = SMALL | {
    "model.features": 4,
    "model.resample": "fir",
    "model.progressive_output": "output_skip",
}
# family -> (configuration, fields, file)
FAMILIES = {
    "score_sde_pytorch": (VE, SCORE_SDE, DATA / "score_sde_pytorch.pth"),
    "score_sde_jax": (
        VP,
        SCORE_SDE
        | {
            "model.residual_block": "ddpm",
            "model.progressive_input": "input_skip",
            "model.progressive_output": "residual",
        },
        DATA / "score_sde_jax.flax",
    ),
    "edm": (
        VE,
        SMALL | {"model.features": 8, "model.attention_resolutions": (4,)},
        DATA / "edm.pt",
    ),
    "diffusers": (
        VE,
        SCORE_SDE | {"model.features": 8, "model.progressive_input": "input_skip"},
        DATA / "diffusers",
    ),
    "openai": (
        VP,
        SMALL
        | {
            "model.name": "adm",
            "model.features": 128,
            "model.resample": "block",
            "model.attention_resolutions": (4,),
            "model.num_classes": 3,
            "model.learned_variance": True,
            "denoiser.parameterization": "eps_learned_variance",
            "sde.name": "ddpm",
            "loss.name": "hybrid",
            "times.name": "timesteps",
            "sampling.label": 2,
        },
        None,
    ),
}
STEPS = {"score_sde_pytorch": 1234, "score_sde_jax": 77}
SAMPLED = {"score_sde_pytorch", "openai"}  # by main.py; the networks of others are like these


def flags(mode, workdir, family, **changes):
    config, fields, _ = FAMILIES[family]
    given = (f"--config.{name}={value}" for name, value in (fields | changes).items())
    return (f"--config={config}", f"--mode={mode}", f"--workdir={workdir}", *given)


def configuration(family):
    config, fields, _ = FAMILIES[family]
    made = load_configuration(config)
    made.update_from_flattened_dict(fields)
    return made


@functools.cache
def openai_file():
    """A state dict of guided-diffusion with random weights, in the file that torch would write."""
    names = json.loads(gzip.decompress((DATA / "families_names.json.gz").read_bytes()))["guided"]
    rng = np.random.default_rng(0)
    path = Path(tempfile.mkdtemp(prefix="scoresde-tests-")) / "guided.pt"
    atexit.register(shutil.rmtree, path.parent, ignore_errors=True)
    draw = functools.partial(rng.normal, 0.0, 0.05)
    write_torch(path, {name: draw(shape).astype(np.float32) for name, shape in names.items()})
    return path


def imported(workdir, family):
    """The run that main.py makes of the family's file."""
    call = run(*flags("import", workdir, family), f"--source={family_file(family)}")
    assert call.status == 0, call.stderr
    assert "config.json" not in call.stdout, "a new run has lost nothing"
    assert Checkpoints(workdir / "checkpoints").steps() == (STEPS.get(family, 0),)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(SAMPLED))
def test_file_is_imported_and_sampled_from(tmp_path, family):
    workdir = imported(tmp_path / "run", family)
    call = run(*flags("sample", workdir, family), "--num_samples=2")
    with np.load(samples_of(call) / "samples.npz") as file:
        assert file["samples"].shape == (2, 8, 8, 3)


@pytest.mark.slow
@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - SAMPLED))
def test_parameters_of_an_imported_run_are_those_of_the_file(tmp_path, family):
    workdir = imported(tmp_path / "run", family)
    checkpoint = load_checkpoint(build(configuration(family)), Workdir(workdir))
    _, found = exchange.import_state(family_file(family), candidate_of(family), [])
    params = checkpoint.denoiser.network.args[0]
    jax.tree.map(np.testing.assert_array_equal, params, found.ema_params)


@pytest.mark.slow
def test_export_of_an_import_is_what_was_imported(tmp_path):
    """And neither overwrites what is there."""
    family, workdir = "score_sde_pytorch", tmp_path / "run"
    source, target = FAMILIES[family][2], tmp_path / "exported.pth"
    assert run(*flags("import", workdir, family), f"--source={source}").status == 0
    before = snapshot(workdir)
    assert run(*flags("export", workdir, family), f"--target={target}").status == 0
    original, exported = read.read(source), read.read(target)
    assert exported["step"] == original["step"]
    for name, value in exported["model"].items():
        np.testing.assert_array_equal(value, original["model"][name])
    pairs = zip(exported["ema"]["shadow_params"], original["ema"]["shadow_params"], strict=True)
    for ours, theirs in pairs:
        np.testing.assert_array_equal(ours, theirs)
    for arguments, message in (
        ((*flags("export", workdir, family), f"--target={target}"), "exists already"),
        ((*flags("import", workdir, family), f"--source={target}"), "holds a run already"),
    ):
        call = run(*arguments)
        assert call.status == 1
        assert message in call.stderr
    assert snapshot(workdir) == before


class Evil:
    def __reduce__(self):
        return (print, ("the file was run",))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"model": Evil()}), "would execute code, so it is refused"),
        (b"<!doctype html><html>404</html>", "web page"),
        (b"", "empty"),
        (pickle.dumps({}), "none of: score_sde, EDM|pickle"),
    ],
)
def test_file_that_cannot_be_used_is_one_line(tmp_path, content, message):
    source = tmp_path / "checkpoint.pth"
    source.write_bytes(content)
    call = run(*flags("import", tmp_path / "run", "edm"), f"--source={source}")
    assert call.status == 1
    assert "the file was run" not in call.stdout + call.stderr
    (line,) = call.stderr.strip().splitlines()
    assert re.search(message, line), line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_network_of_gray_levels_is_not_exported(tmp_path):
    config = load_configuration("configs/vp_digits.py")
    config.denoiser.parameterization, config.data.dequantization = "levels", "none"
    with pytest.raises(ConfigError, match=r"parameterization='levels' is unknown to score_sde_py"):
        export_checkpoint(build(config), Workdir(tmp_path), target=tmp_path / "file.pth")


def test_missing_flags_are_errors(tmp_path):
    for mode, flag in (("import", "source"), ("export", "target")):
        call = run(*flags(mode, tmp_path / "run", "edm"))
        assert call.status == 1
        assert f"--mode={mode} needs --{flag}=FILE" in call.stderr


def refusal(family, candidate, others):
    """The message for a family's file that does not fit the candidate."""
    with pytest.raises(ConfigError, match=rf"^--source=\S+/{family_file(family).name}") as error:
        exchange.import_state(family_file(family), candidate, others)
    assert "\n" not in str(error.value)
    return str(error.value)


def family_file(family):
    return FAMILIES[family][2] or openai_file()


def candidate_of(family, name="given", **fields):
    config = configuration(family)
    config.update_from_flattened_dict(fields)
    return exchange.Candidate(name, *build_network(config))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_file_of_another_width_names_the_setting_or_the_configuration(family):
    """The file's width, features and classes come from its tensors."""
    features = FAMILIES[family][1]["model.features"]
    other = candidate_of(family, "configs/right.py", **{"model.features": 2 * features})
    message = refusal(family, other, [])
    assert f"{features} features" in message
    assert ("3 classes" in message) == (family == "openai")
    assert message.endswith(f"It fits with --config.model.features={features}")
    stranger = candidate_of("openai" if family != "openai" else "edm")
    message = refusal(family, stranger, [other])
    assert message.endswith(f"It fits --config=configs/right.py --config.model.features={features}")


@pytest.mark.slow
def test_groups_that_a_file_cannot_show_are_among_the_settings():
    given = candidate_of("openai", **{"model.features": 64, "model.num_groups": 64})
    assert refusal("openai", given, []).endswith(
        "It fits with --config.model.features=128 --config.model.num_groups=0"
    )


def test_parameters_of_a_configuration_are_made_only_if_all_names_fit():
    def template(network):
        raise AssertionError(network)

    wrong = candidate_of("score_sde_jax")._replace(template=template)
    given = candidate_of("edm")
    message = refusal("score_sde_pytorch", given, [wrong])
    assert message.endswith("and fits no configuration here")


@pytest.mark.slow
def test_file_of_another_network_names_the_configuration_that_fits():
    """What is missing, surplus or misshapen, and where it would fit."""
    names = ("score_sde_jax", "score_sde_pytorch", "openai")
    others = [candidate_of(name, name) for name in names]
    message = refusal("score_sde_pytorch", candidate_of("edm"), others)
    assert re.search(r"missing: .*wrongly shaped: .*It fits --config=score_sde_pytorch$", message)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["score_sde_pytorch", "score_sde_jax", "diffusers"])
def test_file_of_another_family_of_networks_is_refused(family):
    candidate = exchange.Candidate("openai", *build_network(configuration("openai")))
    with pytest.raises(ConfigError, match=r"--source=.*(ADM|adm)"):
        exchange.import_state(FAMILIES[family][2], candidate, [])


def test_numbers_that_are_not_finite_are_no_reason_to_look_for_another_configuration():
    """The file fits, so the message is about its numbers alone."""
    source = FAMILIES["score_sde_pytorch"][2]
    tree = read.read(source)
    tree["model"] = {name: np.full_like(value, np.nan) for name, value in tree["model"].items()}
    network, image_size, template = build_network(configuration("score_sde_pytorch"))
    candidate = exchange.Candidate("this", network, image_size, template)

    def others():
        pytest.fail("looked for other configurations")
        yield

    with (
        mock.patch.object(read, "read", return_value=tree),
        pytest.raises(ConfigError, match=r"numbers that are not finite\. The training has failed"),
    ):
        exchange.import_state(source, candidate, others())
