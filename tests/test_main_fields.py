"""Values of fields that cannot be, and the one line that reports each of them.

Nothing is computed or written. main.py prints the line that building or training raises; some
values go through it here, and each kind of mistake does in test_main.py.
"""

import re

import pytest
from command_line import UNET, assert_rejected, configuration, flags, run

import run_lib
from errors import ScoreSDEError
from evaluation.metrics import check_options
from experiment.build import build
from jobs.workdir import Workdir

# field, value, and what the message must say beside the two.
CHOICES = [
    ("sde.name", "vpp", "subvp, ve, vp"),
    ("model.name", "unet", "ncsnpp"),
    ("model.residual_block", "resnet", "biggan"),
    ("model.resample", "bilinear", "fir"),
    ("model.progressive_input", "yes", "input_skip"),
    ("model.progressive_output", "yes", "output_skip"),
    ("model.progressive_combine", "add", "cat"),
    ("model.embedding", "sinusoidal", "positional"),
    ("denoiser.parameterization", "epsilon", "eps.*scaled_score.*score.*v.*x0"),
    ("denoiser.conditioning", "time", "log_sigma.*log_snr.*t.*timestep_999"),
    ("weight.name", "sigma", "g2.*sigma2"),
    ("times.name", "even", "stratified.*uniform"),
    ("loss.reduction", "max", "half_sum.*mean"),
    ("optim.name", "adamax", "adafactor.*muon.*sgd"),
    ("optim.schedule", "linear", "constant, cosine, inverse_sqrt"),
    ("data.resize", "scale", "crop, none, pad"),
    ("sampling.name", "PC", "ode, pc"),
    ("sampling.predictor", "euler", "ancestral.*euler_maruyama.*none.*reverse_diffusion"),
    ("sampling.corrector", "langevine", "annealed_langevin.*langevin.*none"),
    ("sampling.grid", "linear", "log_snr.*quadratic.*uniform"),
    ("sampling.final_step", "clean", "denoise, mean, none"),
    ("likelihood.trace", "hutchinson", "exact.*gaussian.*rademacher"),
    ("likelihood.solver", "rk45", "adams.*dopri5.*dopri8.*heun.*tsit5"),
    ("eval.features", ("vgg",), "classifier.*inception.*pixels"),
    ("eval.inception_resize", "bicubic", "pytorch, tf1"),
    ("likelihood.ode_variable", "time", "angle, log_snr, sqrt_angle, t"),
    ("likelihood.step_size_control", "global", "batch, per_sample"),
    ("continuous_bound.importance", "t", "log_snr, uniform"),
    ("discrete_bound.variance", "big", "analytic, diagonal, large, learned, small"),
    ("classifier.name", "resnet", "adm_classifier, mlp_classifier, wide_resnet"),
    ("eval.metrics", ("fid",), "loss.*bits_per_dim.*frechet"),
    ("eval.metrics", (), "loss.*bits_per_dim.*frechet"),
    ("data.name", "digit", "digits"),
]

SEED_FIELDS = ("seed", "sampling.seed", "eval.seed")
RANGES = [
    *((f"training.{name}", 0, "at least 1") for name in ("log_every", "sample_count")),
    *(("training.steps", steps, r"\[1, 2147483647\]") for steps in (0, 2**31)),
    *((name, seed, r"\[0, 4294967295\]") for name in SEED_FIELDS for seed in (-1, 2**32, 10**20)),
    *((name, 10**11, "GB of memory") for name in ("training.batch_size", "training.sample_count")),
    *((name, 10**13, "GB of memory") for name in ("eval.batch_size", "eval.samples")),
    ("training.label_dropout", 1.0, r"\[0, 1\)"),
    ("training.batch_size", 0, "positive multiple"),
    ("training.batch_size", -8, "positive multiple"),
    ("training.checkpoint_every", 0, "at least 1"),
    ("training.keep_checkpoints", -1, "at least 0"),
    ("training.sample_every", -1, "at least 0"),
    ("eval.batch_size", 0, "positive multiple"),
    ("eval.samples", 1, "at least 2"),
    ("eval.samples", 4, "too small for frechet; give at least 5"),
    ("eval.sampling_seeds", 0, "at least 1"),
    ("classifier.steps", 0, "at least 1"),
    ("continuous_bound.num_times", 3, "even"),
    ("eval.loss_repeats", 0, "at least 1"),
    ("eval.dequantizations", 0, "at least 1"),
    ("data.image_size", 0, "at least 1"),
    ("data.channels", -1, "at least 1"),
    ("model.features", 0, ""),
    ("model.features", -8, ""),
    ("model.channel_multipliers", (), ""),
    ("model.blocks_per_resolution", 0, ""),
    ("model.dropout", 1.5, ""),
    ("model.attention_resolutions", (5,), "8"),
    ("model.channel_multipliers", (1, 1, 1, 1, 1), "8"),
    ("sde.beta_min", -0.1, ""),
    ("times.t_min", 0.0, ""),
    ("times.t_min", 1.0, ""),
    ("optim.lr", 0.0, "above 0"),
    ("optim.lr", float("nan"), "above 0"),
    ("optim.warmup", -1, "at least 0"),
    ("optim.grad_clip", -1.0, "at least 0"),
    ("optim.beta1", 1.0, r"\[0, 1\)"),
    ("ema.rate", 1.0, r"\[0, 1\)"),
    ("ema.half_life_images", 0.0, "above 0"),
    ("ema.lengths", (0.3,), r"\[0\.001, 0\.28\]"),
    ("model.features", 2**31, "at most 1048576"),
    ("model.blocks_per_resolution", 10**9, "at most 1000"),
    ("model.channel_multipliers", (10**9,), "at most 1048576 channels"),
    *(("sampling.steps", steps, r"\[1, 1000000\]") for steps in (0, 10**9)),
    ("sampling.t_min", 1.0, r"must lie in \(0, 1\)"),
    ("sampling.churn", -0.5, ""),
    ("likelihood.rtol", 0.0, r"must lie in \(0, 1\)"),
    ("likelihood.atol", 2.0, r"must lie in \(0, 1\)"),
    ("likelihood.max_steps", 0, "at least 1"),
    ("likelihood.probes", 0, "at least 1"),
    ("likelihood.t_min", 0.0, r"must lie in \(0, 1\)"),
]

TYPES = [
    ("optim.lr", "fast", "float"),
    ("training.steps", "many", "int"),
    ("training.steps", 1.5, "int"),
    ("model.features", "wide", "int"),
    ("data.centered", "maybe", "bool"),
    ("model.channel_multipliers", "(1,", ""),
]


# Of these main.py reads the text: names, a tuple, and numbers in their notations.
TYPED = [
    CHOICES[0],
    ("eval.metrics", ("fid",), "loss.*bits_per_dim.*frechet"),
    ("eval.samples", 4, "too small for frechet; give at least 5"),
    ("data.name", "digit", "digits"),
    ("training.batch_size", -8, "positive multiple"),
    ("training.steps", 2**31, r"\[1, 2147483647\]"),
    ("optim.lr", float("nan"), "above 0"),
    ("likelihood.atol", 2.0, r"must lie in \(0, 1\)"),
]


def train(fields, workdir):
    """What main.py does, with every field given."""
    experiment = build(configuration(fields), overrides=frozenset(fields))
    check_options(experiment.evaluation, experiment.data.kind)
    run_lib.train(experiment, Workdir(workdir))


def assert_refused(fields, pattern, workdir):
    """Training is refused in one line that matches, and nothing is written; return the line."""
    with pytest.raises(ScoreSDEError, match=pattern) as error:
        train(UNET | fields, workdir)
    assert "\n" not in str(error.value)
    assert not workdir.exists()
    return str(error.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value", "remedy"), CHOICES + RANGES, ids=lambda v: str(v) if v != "" else "-"
)
def test_value_that_cannot_be(tmp_path, field, value, remedy):
    line = assert_refused(
        {field: value}, rf"config\.{re.escape(field)}.*{remedy}", tmp_path / "run"
    )
    assert str(value).strip("()',") in line


@pytest.mark.slow
@pytest.mark.parametrize(("field", "value", "remedy"), TYPED, ids=str)
def test_value_that_is_typed_and_cannot_be(tmp_path, field, value, remedy):
    workdir = tmp_path / "run"
    call = run(*flags("train", workdir, UNET | {field: value}))
    assert_rejected(call, rf"config\.{re.escape(field)}.*{remedy}")
    assert str(value).strip("()',") in call.stderr
    assert not workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize(("field", "value", "kind"), TYPES)
def test_value_of_the_wrong_type(tmp_path, field, value, kind):
    workdir = tmp_path / "run"
    call = run(*flags("train", workdir, UNET | {field: value}))
    assert_rejected(call, rf"config\.{re.escape(field)}.*")
    assert str(value) in call.stderr
    assert kind in call.stderr
    assert not workdir.exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        (
            {"sde.sigma_max": 3.0},
            r"config\.sde\.sigma_max=3\.0 is not used with name='vp'.*beta_max, beta_min",
        ),
        (
            {"sampling.predictor": "ancestral", "sampling.churn": 1.0},
            r"config\.sampling\.churn=1\.0 is not used .*predictor='ancestral'.*variance",
        ),
        ({"sampling.snr": 0.16}, r"config\.sampling\.snr=0\.16 .*the fields used are: .*steps"),
        ({"sampling.rtol": 1e-3}, r"config\.sampling\.rtol=0\.001 "),
        ({"sampling.name": "ode"}, r"config\.sampling\.steps=4 is not used with name='ode'.*rtol"),
        (
            {"sampling.corrector": "langevin", "sampling.snr": 0.0},
            r"config\.sampling\.snr=0\.0",
        ),
        (
            {"sampling.corrector": "langevin", "sampling.corrector_steps": 0},
            r"config\.sampling\.corrector_steps=0",
        ),
        (
            {"sampling.corrector": "langevin", "sampling.norm_reduction": "mean"},
            r"config\.sampling\.norm_reduction='mean'.*batch.*per_sample",
        ),
        (
            {"sampling.predictor": "ancestral", "sampling.variance": "tiny"},
            r"config\.sampling\.variance='tiny'.*small",
        ),
        (
            {"sampling.predictor": "ancestral", "sampling.variance": "learned"},
            r"config\.sampling\.variance='learned'.*parameterization=eps_learned_variance.*small",
        ),
        (
            {"sampling.name": "dpm_solver", "sampling.order": 3, "sampling.steps": 2},
            r"config\.sampling\.order=3 needs at least 3 steps",
        ),
        (
            {"sampling.name": "ddim", "sampling.churn": 1.0},
            r"config\.sampling\.churn=1\.0 is not used with name='ddim'.*eta",
        ),
        (
            {"sampling.steps": 2, "sampling.times": (1.0, 0.2, 0.5)},
            r"config\.sampling\.times: 0\.5 follows 0\.2",
        ),
        ({"sampling.grid": "ddim50"}, r"config\.sampling\.grid='ddim50' respaces a chain"),
        (
            {"sampling.name": "analytic", "training.sample_every": 10},
            r"config\.sampling\.name=analytic needs moments.*training\.sample_every=0",
        ),
        (
            {"eval.metrics": ("inception_score",)},
            r"inception_score, which needs class probabilities.*features=classifier or inception",
        ),
        (
            {"eval.features": ("pixels", "classifier"), "eval.reference": "x.npz"},
            r"config\.eval\.reference='x\.npz' belongs to one kind of features",
        ),
        (
            {"discrete_bound.variance": "learned"},
            r"config\.discrete_bound\.variance='learned'.*parameterization=eps_learned_variance",
        ),
        ({"sde.beta_max": 0.01}, r"config\.sde\.beta_min=0\.1 must be below beta_max=0\.01"),
        ({"sde.name": "ve", "sde.sigma_max": 1e-3}, r"config\.sde\.sigma_m"),
        ({"data.image_size": 16}, r"config\.data\.image_size=16.*8x8 pixels.*image_size=8.*'pad'"),
        ({"data.channels": 3}, r"config\.data\.channels=3.*has 1.*channels=1"),
        ({"data.name": "cifar10", "data.dir": "/nowhere"}, r"cifar10.*--mode=prepare"),
        ({"data.name": "/nowhere/images"}, r"/nowhere/images.*neither an \.npz file nor a folder"),
    ],
    ids=lambda v: ",".join(v) if isinstance(v, dict) else "",
)
def test_values_that_do_not_go_together(tmp_path, fields, pattern):
    assert_refused(fields, pattern, tmp_path / "run")


@pytest.mark.slow
def test_batches_must_divide_over_the_devices(tmp_path):
    for field in ("training.batch_size", "eval.batch_size"):
        call = run(*flags("train", tmp_path / "run", UNET | {field: 30}), devices=4)
        pattern = rf"config\.{field}=30 does not divide over 4 device\(s\).*28 or 32"
        assert_rejected(call, pattern)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("optim.foo", r"is not a field; the fields of config\.optim are: .*beta1.*lr.*name"),
        (
            "optim.ns_steps",
            r"=3 is not used with name='adam', .*; the fields used are: beta1, beta2",
        ),
    ],
)
def test_field_that_no_optimizer_or_not_this_one_has(tmp_path, field, message):
    workdir = tmp_path / "run"
    call = run(*flags("train", workdir, UNET | {field: 3}))
    assert_rejected(call, rf"config\.{re.escape(field)}.*{message}")
    assert not workdir.exists()
