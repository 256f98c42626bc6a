"""What the documentation says works: commands run, code runs, links and names exist.

Commands of `sh` blocks run in the order of their page, reduced: tiny networks, a few steps, random
images in the place of data that would have to be downloaded. Other blocks hold what needs a
cluster, a bucket or published files; scripts that measure are only compared with their flags.
"""

import functools
import re
import shlex
import signal
import subprocess

import numpy as np
import pytest
from command_line import ROOT, run, start, write_images
from PIL import Image

import losses
import models
import sde_lib
import solvers
from data import readers
from experiment.configurations import configuration_names, known_configurations
from jobs.shipped import SHIPPED
from main import MODES
from results.run import RECIPES

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
UNET = {
    "model.features": 8,
    "model.channel_multipliers": "(1,)",
    "model.blocks_per_resolution": 1,
    "model.attention_resolutions": "()",
}
MLP = {"model.name": "mlp", "model.features": 8, "model.depth": 1}
TINY = {
    "training.batch_size": 8,
    "training.steps": 2,
    "training.sample_every": 0,
    "diagnostics.every": 0,
    "classifier.name": "adm_classifier",
    "classifier.features": 8,
    "classifier.channel_multipliers": "(1,)",
    "classifier.head_width": 8,
    "classifier.steps": 2,
    "dequantizer.features": 4,
    "dequantizer.steps": 2,
    "variance_head.features": 8,
    "variance_head.steps": 2,
    "analytic_dpm.num_images": 8,
    "perceptor.features": 8,
    "perceptor.depth": 1,
    "perceptor.steps": 2,
    "eval.batch_size": 100,
    "eval.samples": 5,
    "eval.loss_repeats": 1,
    "eval.dequantizations": 1,
    "eval.error_budget_images": 0,
    "eval.sampling_seeds": 1,
    "likelihood.solver": "heun",
    "likelihood.probes": 1,
    "likelihood.rtol": 0.1,
    "likelihood.atol": 0.1,
}
TABLES = (
    *((sde_lib, "SDES"), (solvers, "SOLVERS"), (models, "NETWORKS"), (losses, "LOSSES")),
    (readers, "READERS"),
)
POINTS = {
    "model.features": 8,
    "data.samples": 100,
    "training.batch_size": 8,
    "training.steps": 2,
    "training.steps_per_call": 1,
    "training.sample_every": 0,
    "diagnostics.every": 0,
    "classifier.steps": 2,
    "eval.samples": 8,
    "eval.batch_size": 8,
    "eval.error_budget_images": 0,
    "likelihood.rtol": 0.1,
    "likelihood.atol": 0.1,
}
ROWS = tuple(
    f"configs/{name}.py" for name in ("vp_swiss_roll", "vp_waves", "energy_moons", "bridge_points")
)
# A U-Net takes thrice the time to compile. So those that need one have it, for labels of
# augmentation and for export, and others a perceptron.
EXPORTED = "configs/vp_cifar10.py:ddpmpp"
WITH_UNET = ("configs/edm_cifar10.py", EXPORTED)
# What every page may count on, and what some may: runs that their commands and code read.
TRAINED = "python main.py --config=configs/vp_digits.py --mode=train"
NEEDS = {
    "text": "python main.py --config=configs/vp_digits.py --mode=train_perceptor",
    "checkpoints": f"python main.py --config={EXPORTED} --mode=train",
}
SAMPLING = {"steps": 4, "max_steps": 1000, "rtol": 0.1, "atol": 0.1}
# What commands name that this test lacks: published files, clusters, buckets.
NOT_HERE = {
    *("runs/adm", "runs/up"),
    *("srun python", "nohup python", "exec python", "--coordinator=", "gs://YOUR-BUCKET"),
    *("bedroom", "/mnt/bucket"),
}
# Defines `python`, and nothing else: it prints its arguments, quoted, one call a line.
SHELL = "python() { printf '%q ' \"$@\"; echo; }\n"


def blocks(page, language):
    return [code for found, code in BLOCK.findall(page.read_text()) if found == language]


@functools.cache
def commands(page):
    """Return the calls of main.py in `sh` blocks, with loops and variables expanded.

    A restricted shell without a PATH finds no other program.
    """
    if not (code := "\n".join(blocks(page, "sh"))):
        return []
    shell = ["/bin/bash", "--noprofile", "--norc", "-r", "-c", SHELL + code]
    done = subprocess.run(shell, env={"PATH": ""}, capture_output=True, text=True, check=False)
    calls = [line.strip() for line in done.stdout.splitlines()]
    return [f"python {call}" for call in calls if call.startswith("main.py ")]


@functools.cache
def configurations():
    """The names of all configurations, alone and with each of their variants."""
    return frozenset(name for name, _ in known_configurations())


def pages_with(found):
    pages = [page for page in PAGES if found(page)]
    return pytest.mark.parametrize("page", pages, ids=lambda page: page.stem)


@functools.cache
def anchors(page):
    """The names by which links find a page's headings, as on GitHub."""
    headings = re.findall(r"^#+ (.*)$", BLOCK.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_relative_links_lead_somewhere(page):
    text = BLOCK.sub("", page.read_text())
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:", link):
            name, _, anchor = link.partition("#")
            path = page.parent / name if name else page
            assert path.exists(), f"{page.name} links to {link}"
            assert not anchor or anchor in anchors(path), f"{page.name} links to {link}"


def test_a_command_that_is_not_run_names_what_is_not_here():
    others = [
        code for page in PAGES for lang, code in BLOCK.findall(page.read_text()) if lang != "sh"
    ]
    lines = "\n".join(others).replace("\\\n", " ").splitlines()
    skipped = [line for line in lines if re.search(r"\bmain\.py +--", line)]
    assert not [line for line in skipped if not any(name in line for name in NOT_HERE)]
    assert not [name for name in NOT_HERE if not any(name in line for line in skipped)]


def test_loops_of_commands_are_expanded():
    students = [c for c in commands(ROOT / "docs/objectives.md") if "--workdir=runs/student_" in c]
    assert len(students) == 4
    assert "loss.student_steps=1 --config.loss.teacher=runs/student_2 " in students[-1]


def flags_of(script):
    """Return the flags that a script defines, itself or in what it imports from its folder."""
    waiting, seen, found = [script], set(), set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        text = path.read_text()
        found.update(re.findall(r'add_argument\(\s*"(--\w+)"', text))
        names = re.findall(r"^ *from (\w+) import", text, re.MULTILINE)
        waiting += [script.parent / f"{name}.py" for name in names]
    return found


def test_scripts_that_measure_exist_and_have_the_flags_of_their_commands():
    calls = {
        call
        for page in PAGES
        for call in re.findall(r"python ((?:benchmarks|results)/\w+\.py[^`\n]*)", page.read_text())
    }
    assert len(calls) > 30
    for call in calls:
        path, *arguments = shlex.split(call, comments=True)
        given = {a.partition("=")[0] for a in arguments if a.startswith("--")}
        if path == "results/run.py":  # further flags go to main.py
            assert {a for a in arguments if not a.startswith("--")} <= {"NAME", *RECIPES}, call
        elif "parse_known_args" not in (ROOT / path).read_text():  # or the rest goes to main.py
            assert given <= flags_of(ROOT / path), call


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_configurations_and_their_variants_exist(page):
    known = configurations() | set(configuration_names())
    for name in re.findall(r"configs/\w+\.py(?::\w+)?", page.read_text()):
        if "FILE" not in name and name != "configs/default.py":
            assert name in known, f"{page.name} names {name}"


def test_the_table_of_configurations_is_complete():
    """Each file is a row; each of its variants stands beside it."""
    rows = re.findall(
        r"^\| (`[^|]*) \|([^|]*)\|$", (ROOT / "docs/checkpoints.md").read_text(), re.M
    )
    listed = {
        (file, variant)
        for files, variants in rows
        for file in re.findall(r"`(\w+)`", files)
        for variant in re.findall(r"`(\w+)`", variants) or [""]
    }
    wanted = set()
    for name in configurations():
        file, _, variant = name.partition(":")
        wanted.add((file.removeprefix("configs/").removesuffix(".py"), variant))
    assert wanted <= listed


def test_the_table_of_samplers_is_complete():
    text, _, _ = (ROOT / "docs/samplers.md").read_text().partition("\n## ")
    listed = set(re.findall(r"^\| `(\w+)` \|", text, re.M))
    assert listed == solvers.SOLVERS.keys() | solvers.ADAPTIVE.keys()


def test_the_table_of_modes_is_complete():
    text = (ROOT / "docs/getting_started.md").read_text()
    _, _, rows = text.partition("| `--mode=` |")
    listed = re.findall(r"^\| ((?:`\w+`,? ?)+)\|", rows.partition("\n## ")[0], re.M)
    assert {name for row in listed for name in re.findall(r"\w+", row)} == set(MODES)


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    assert len(text.split()) <= 800


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the data that the documentation names, and a place for its runs."""
    folder = tmp_path_factory.mktemp("docs")
    images = folder / "path/to/images"
    images.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for index in range(20):
        pixels = rng.integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(pixels).save(images / f"{index}.png")
    write_images(folder / "cifar10.npz", 16, 8, size=32, channels=3)
    np.save(folder / "path/to/rows.npy", rng.normal(size=(100, 5)))
    np.save(folder / "path/to/series.npy", rng.normal(size=(100, 8, 2)))
    return folder


def reduced(command, folder):
    """The arguments of a command in its reduced setting, with all its files in `folder`."""
    _, _, *arguments = shlex.split(command)
    given = dict(a.removeprefix("--").partition("=")[::2] for a in arguments if "=" in a)
    arguments = [re.sub(r"(?<![\w/])(path/to|runs)/", rf"{folder}/\1/", a) for a in arguments]
    arguments = [
        re.sub(r"=(\w+\.(?:npz|pth))$", rf"={folder}/\1", argument) for argument in arguments
    ]
    arguments = [a.replace("=test:0-296", "=test:0-3") for a in arguments]
    if "config" not in given:
        return arguments
    file, _, variant = given["config"].partition(":")
    if "workdir" not in given:
        name = "_".join(filter(None, [file.removeprefix("configs/").removesuffix(".py"), variant]))
        arguments.append(f"--workdir={folder}/runs/{name}")
    of_points = file in ROWS
    own = "path/to/" in given.get("config.data.name", "")  # images, in any network
    network = UNET if given["config"] in WITH_UNET else MLP
    fields = dict(POINTS) if of_points else TINY | network
    if file == "configs/vp_waves.py":
        fields["model.channel_multipliers"] = "(1,)"
    if given.get("source") in SHIPPED:  # the network as it is
        fields = {}
    if own:
        del fields["diagnostics.every"]  # a first run on one's own data is measured, too
        if given["mode"] == "check" and not of_points:  # of the network as it is
            fields = {}
    if "cifar10" in file:
        fields["data.name"] = folder / "cifar10.npz"
    sampler = given.get("config.sampling.name", "unipc" if "digits" in file or of_points else "pc")
    adaptive = sampler in solvers.ADAPTIVE
    follows = "config.loss.student_steps" in given  # its sampler takes the student's steps
    for name, value in SAMPLING.items():
        if (name != "steps") == adaptive and sampler != "sde" and not follows:
            fields[f"sampling.{name}"] = value
    arguments += [
        f"--config.{name}={value}"
        for name, value in fields.items()
        if f"config.{name}" not in given
    ]
    if given.get("mode") == "sample":
        arguments = [a for a in arguments if not a.startswith("--num_samples")]
        arguments.append("--num_samples=8")
    return arguments


def opened(arguments):
    """Start a server at a free port, and end it by Ctrl-C."""
    running = start(*(a for a in arguments if not a.startswith("--port")), "--port=0")
    running.until(lambda: running.has_said("Ctrl-C ends", "stdout"))
    running.send(signal.SIGINT)
    return running.wait()


@functools.cache
def succeeds(command, folder):
    """Run the command, once for all pages that show it."""
    arguments = reduced(command, folder)
    done = opened(arguments) if "--mode=demo" in arguments else run(*arguments)
    assert done.status == 0, f"{command}\n{done.stderr[-2000:]}"


@pytest.fixture
def trained(folder, page):
    """The folder, with the runs on which the page may count."""
    for needed in filter(None, (TRAINED, NEEDS.get(page.stem))):
        succeeds(needed, folder)
    return folder


@pytest.mark.slow
@pages_with(commands)
def test_commands_run(page, trained):
    for command in commands(page):
        succeeds(command, trained)


@pytest.mark.slow
@pages_with(lambda page: blocks(page, "python"))
def test_code_runs(page, trained, monkeypatch):
    monkeypatch.chdir(trained)
    for command in commands(page):  # code may load the runs of its page
        if command.endswith("--mode=train"):
            succeeds(command, trained)
    for module, name in TABLES:
        monkeypatch.setattr(module, name, dict(getattr(module, name)))
    for code in blocks(page, "python"):
        code = code.replace("(64, *", "(8, *")  # fewer samples
        exec(compile(code, str(page), "exec"), {})
