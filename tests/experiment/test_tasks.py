"""Tasks and guidances: what cannot be done is refused in one line that names the field."""

import dataclasses
import itertools

import pytest
from command_line import TINY, configuration

from errors import ConfigError
from experiment.build import build
from experiment.class_guidance import GuidanceOptions
from experiment.options import SamplingOptions
from experiment.tasks import TASKS, InverseProblem

FIELDS = TINY | {
    "sampling.name": "ddim",
    "sampling.steps": 3,
    "sampling.final_step": "denoise",
    "sampling.variant": None,
}
MRI = {"task.name": "mri", "task.input": "test"}
INPAINT = {"task.name": "inpaint", "task.input": "test"}
DEBLUR = {"task.name": "deblur", "task.input": "test"}
SDEDIT = {"task.name": "sdedit", "task.input": "test"}
RECONSTRUCT = {"task.name": "reconstruct", "task.input": "test"}
ODE = {"sampling.name": "ode", "sampling.steps": None}
CLASSIFIER = {"guidance.name": "classifier"}
CLASSIFIER_FREE = {"guidance.name": "classifier_free", "model.num_classes": 10}

UNUSED = [
    ({"task.start": 0.5}, r"config\.task\.start=0\.5 is not used with name='generate'; the fields"),
    (MRI | {"task.mask": "left"}, r"config\.task\.mask='left' is not used with name='mri'; the"),
    (
        MRI | {"task.strength": 0.5},
        r"config\.task\.strength=0\.5 is used with method=projection, not with 'pigdm'",
    ),
    (
        RECONSTRUCT | {"sampling.clip": "range"},
        r"config\.sampling\.clip='range' is not used with config\.task\.name='reconstruct'; leave",
    ),
    (
        {"sampling.name": "pc", "sampling.predictor": "ancestral"}
        | {"sampling.guidance_form": "mean"},
        r"config\.sampling\.guidance_form='mean' is used with config\.guidance\.name=classifier, "
        "not with 'none'; leave it out",
    ),
    (
        {"guidance.scale": 2.0},
        r"config\.guidance\.scale=2\.0 is not used with name='none'; choose classifier or "
        "classifier_free",
    ),
    (
        CLASSIFIER | {"guidance.interval": (0.1, 0.9)},
        r"config\.guidance\.interval=\(0\.1, 0\.9\) is used with name=classifier_free or autogu",
    ),
    (
        CLASSIFIER | {"guidance.run": "runs/small"},
        r"config\.guidance\.run='runs/small' is used with name=autoguidance, not with 'classifier'",
    ),
]
VALUES = [
    ({"task.name": "paint"}, r"config\.task\.name='paint' is unknown; choose one of: colorize"),
    ({"guidance.name": "clip"}, r"config\.guidance\.name='clip' is unknown; choose one of: autog"),
    ({"task.name": "inpaint", "task.mask": "left"}, r"config\.task\.input='' names no image; give"),
    (INPAINT, r"config\.task\.mask='' names no file; give a"),
    (
        MRI | {"task.method": "exact"},
        r"config\.task\.method='exact' is unknown; choose one of: dps, pigdm, projection",
    ),
    (
        MRI | {"task.method": "projection", "task.strength": 2.0},
        r"config\.task\.strength=2\.0 must lie in \(0, 1\]",
    ),
    (DEBLUR | {"task.noise": -1.0}, r"config\.task\.noise=-1\.0 must be at least 0"),
    (DEBLUR | {"task.noise": float("inf")}, r"config\.task\.noise=inf must be .*finite"),
    (DEBLUR | {"task.blur_std": 0.0}, r"config\.task\.blur_std=0\.0 must be above 0"),
    (
        MRI | {"task.guidance_scale": 0.0},
        r"config\.task\.guidance_scale=0\.0 must be above 0",
    ),
    (MRI | {"task.name": "super_resolve", "task.factor": 3}, r"task\.factor=3 must divide"),
    (MRI | {"task.name": "colorize"}, r"config\.task\.name='colorize' needs images of several ch"),
    (
        SDEDIT,
        r"config\.task\.start=1\.0: sdedit adds noise .* below 1, such as config\.task\.start",
    ),
    (SDEDIT | {"task.start": 1e-4}, r"config\.task\.start=0\.0001 must be above t_min=0\.001"),
    ({"guidance.name": "autoguidance"}, r"config\.guidance\.run='' names no bad model .*; give an"),
    (CLASSIFIER | {"guidance.scale": -1.0}, r"config\.guidance\.scale=-1\.0 must be at least 0"),
    *(
        (CLASSIFIER_FREE | {"guidance.interval": wrong}, "two increasing times between 0 and 1")
        for wrong in ((0.2,), (), (0.8, 0.2), (-1.0, 0.5), ("a", "b"))
    ),
]
UPSAMPLE = {"task.name": "upsample", "task.input": "test"}
UPSAMPLER = {"model.name": "adm", "model.upsampling": 2, "model.head_width": 8}
TOGETHER = [
    (
        UPSAMPLE,
        r"config\.task\.name='upsample' needs an upsampler, such as configs/adm_upsampler\.py, but "
        r"config\.model\.upsampling=1; for this network choose config\.task\.name=super_resolve",
    ),
    (
        MRI | UPSAMPLER,
        r"config\.task\.name='mri' has no small image for the upsampler of "
        r"config\.model\.upsampling=2; choose config\.task\.name=upsample",
    ),
    (
        UPSAMPLE | UPSAMPLER | {"model.num_classes": 10},
        r"config\.task\.name='upsample' needs the class of each input; set config\.sampling\.label",
    ),
    (
        DEBLUR | {"task.method": "projection"},
        r"config\.task\.method='projection' is unstable with config\.task\.name='deblur'.*; choose",
    ),
    (
        INPAINT | ODE | {"task.mask": "top", "task.method": "projection"},
        r"config\.task\.method='projection' acts between fixed steps, but config\.sampling\.name="
        r"'ode' chooses its own steps; choose one of: pc, ddim.*; or choose config\.task\.method",
    ),
    (
        SDEDIT | ODE | {"task.start": 0.5},
        r"config\.task\.name='sdedit' needs fixed steps, but config\.sampling\.name='ode' chooses "
        "its own steps; choose one of: pc, ddim",
    ),
    (
        RECONSTRUCT | {"sampling.eta": 1.0},
        r"config\.task\.name='reconstruct' encodes images as latents, which config\.sampling\.name="
        r"'ddim' cannot do; choose ode, or ddim with eta=0",
    ),
    (
        MRI | {"task.method": "projection", "task.noise": 0.1},
        r"config\.task\.noise=0\.1 would be copied into the samples by method='projection'; choose",
    ),
    (
        {"guidance.name": "classifier_free"},
        r"config\.guidance\.name='classifier_free' needs a class-conditional network, but "
        r"config\.model\.num_classes=0; choose classifier and run --mode=train_classifier",
    ),
]
LABELS = [
    (
        CLASSIFIER | {"sampling.labels": (1.7,)},
        r"config\.sampling\.labels=\(1\.7,\) must be integers",
    ),
    (
        CLASSIFIER | {"sampling.labels": (1, 10)},
        r"labels=\(1, 10\) is not a class with config\.classifier\.num_classes=10; valid: 0\.\.9$",
    ),
    (
        CLASSIFIER | {"sampling.label": 10},
        r"label=10 is not a class with config\.classifier\.num_classes=10; valid: 0\.\.9 or -1 \(",
    ),
    (
        CLASSIFIER | {"sampling.labels": (1,), "sampling.label": 1},
        r"labels=\(1,\) and label=1: give one of the two",
    ),
    (
        {"sampling.labels": (1,)},
        r"labels=\(1,\) is not a class with config\.model\.num_classes=0; valid: nothing",
    ),
    (
        CLASSIFIER_FREE | {"sampling.label": 10},
        r"label=10 is not a class with config\.model\.num_classes=10; valid: 0\.\.9 or -1 \(all",
    ),
    (
        {"model.num_classes": 10, "sampling.label": 11},
        r"label=11 is not a class with config\.model\.num_classes=10; valid: .* or 10 \(no class\)",
    ),
]


@pytest.mark.parametrize(("fields", "message"), UNUSED + VALUES + TOGETHER + LABELS)
def test_what_cannot_be_done_is_refused_in_one_line_before_anything_runs(fields, message):
    with pytest.raises(ConfigError, match=message) as caught:
        build(configuration(FIELDS | fields), overrides=frozenset(fields))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(("config.sampling.", "config.guidance.", "config.task."))


def test_the_label_of_no_class_is_a_label_without_guidance():
    fields = {"model.num_classes": 10, "sampling.label": 10}
    assert build(configuration(FIELDS | fields)).sampler.options.label == 10


@pytest.mark.parametrize(("name", "own"), [("strength", "projection"), ("data_std", "pigdm")])
def test_option_of_one_method_is_refused_with_the_others(name, own):
    assert dataclasses.replace(InverseProblem(method=own), **{name: 0.5})
    with pytest.raises(ValueError, match=f"{name}=0.5 is used with method={own}, not with 'dps'"):
        InverseProblem(method="dps", **{name: 0.5})


@pytest.mark.parametrize("name", TASKS)
def test_a_task_names_each_of_its_options_once(name):
    fields = itertools.chain(*map(dataclasses.fields, TASKS[name]))
    names = [field.name for field in fields]
    assert len(names) == len(set(names))
    assert "name" not in names, "the section's own"


def test_sections_of_samples_share_no_field_but_the_name():
    sections = ("sampling", "guidance", "task")
    config = configuration()
    shared = set.intersection(*(set(config[section]) for section in sections))
    assert shared == {"name"}
    assert not {f.name for f in dataclasses.fields(GuidanceOptions)} & {
        f.name for f in dataclasses.fields(SamplingOptions)
    }
