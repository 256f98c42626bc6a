"""Type bad command lines at random, and look for anything but one line and a non-zero exit.

    python benchmarks/bad_inputs.py --count=2000

Each takes a configuration, a mode and one to three fields or flags with values that hardly fit:
wrong types, edges of numbers, other files. A value that fits by luck must run, in --mode=check. A
traceback, two lines, an error with status 0, or more than a minute is a fault; they are listed.
Results are written to benchmarks/results/bad_inputs.jsonl.
"""

import argparse
import random
import re
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from runs import ROOT, Results

sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from command_line import CONFIG, start

from experiment.configurations import default_configuration
from files.nested import flatten

RESULTS = Results("bad_inputs", ("count", "seed"))
NUMBERS = ["0", "-1", "1", "2", "3.5", "-0.0", "1e-30", "1e30", "1e400", "nan", "inf", "-inf"]
NUMBERS += ["99999999999999999999", "2147483648", "4294967296", "1_000", "0x10", "1e3", "True"]
TEXTS = ["", " ", "None", "none", "''", '"a"', "()", "(1,)", "(1, 2, 3)", "(1.5, 'x')", "((1,),)"]
TEXTS += [
    "[]",
    "{}",
    "{'a': 1}",
    "lambda: 0",
    "../..",
    "/",
    "/dev/null",
    "/dev/zero",
    "~",
    "\u00e9",
]
TEXTS += ["a" * 500, "test:-1", "test:0-1", "a,b", "1,2", "ddim10", "\n", "$HOME", "gs://b/c", "%s"]
NAMES = ["vp", "ve", "edm", "ddpm", "smld", "pc", "ddim", "heun", "ode", "sde", "analytic", "unipc"]
NAMES += ["inpaint", "mri", "sdedit", "interpolate", "classifier", "classifier_free", "ncsn", "dit"]
NAMES += ["adm", "exact", "learned", "karras", "log_snr", "timesteps", "fourier", "inception"]
NAMES += ["hybrid", "vlb", "consistency", "consistency_training", "consistency_distillation"]
NAMES += ["progressive_distillation", "loss_aware", "log_normal", "min_snr", "sigmoid", "muon"]
NAMES += ["schedule_free_adamw", "inverse_sqrt", "truncated_normal", "variational", "autoguidance"]
FLAGS = ["config", "mode", "workdir", "checkpoint", "source", "target", "num_samples", "gif", "png"]
FLAGS += [
    "attention_order",
    "ema",
    "length",
    "compilation_cache",
    "wokdir",
    "config.x",
    "config.seed.y",
    "verbosity",
]
# What a mode trains, if the command fits by luck.
TRAINED = ["training", "classifier", "dequantizer", "variance_head", "perceptor"]


def command(draw: random.Random, files: list[str], modes: list[str]) -> list[str]:
    """Return the arguments of a command that is probably wrong."""
    fields = flatten(default_configuration(), ".")
    values = NUMBERS + TEXTS + NAMES + files
    arguments = [f"--config={CONFIG}", "--mode=check"]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        name = f"config.{draw.choice(list(fields))}" if draw.random() < 0.8 else draw.choice(FLAGS)
        value = draw.choice([*values, *modes] if name == "mode" else values)
        if isinstance(fields.get(name.removeprefix("config.")), int | float):
            value = draw.choice(NUMBERS)  # otherwise most are refused for their type
        arguments.append(f"--{name}={value}" if draw.random() < 0.95 else f"--{name}")
    if draw.random() < 0.1:
        arguments[1] = f"--mode={draw.choice(modes)}"
    if draw.random() < 0.05:
        arguments.append(draw.choice(values))
    arguments += [f"--config.{name}.steps=1" for name in TRAINED]
    arguments.append("--config.training.sample_every=0")
    return [argument for argument in arguments if "\0" not in argument]


def fault(arguments: list[str], folder: str) -> str:
    """Run a command in a folder of its own; return what is wrong with how it ends, or ''."""
    with tempfile.TemporaryDirectory(dir=folder) as workdir:
        # Runs go there, whatever names they are given.
        relative = re.compile(r"--workdir=(?!/|~|gs:|$)")
        arguments = [relative.sub(f"--workdir={workdir}/", each) for each in arguments]
        given = any(argument.startswith("--workdir") for argument in arguments)
        more = [] if given else [f"--workdir={workdir}/run"]
        running = start(*arguments, *more)
        running.process.join(60)
        if running.process.is_alive():
            running.process.kill()
            running.wait()
            return "it did not end within a minute"
        call = running.wait()
    said = [
        line
        for line in call.stderr.splitlines()
        if not re.match(r".*%\||WARNING|[IW]\d{4} |\s*(\x1b\[A)?$", line)
    ]
    if "Traceback" in call.stderr:
        return f"traceback: {said[-1]}"
    if call.status == 0:
        return f"an error with status 0: {said[-1]}" if said else ""
    if len(said) != 1 or not said[0].startswith("error: "):
        return f"{len(said)} lines with status {call.status}: {' / '.join(said)[:300]}"
    return ""


def write_files(folder: Path, draw: random.Random) -> list[str]:
    """Write files that are not what their names say; return their paths and that of the folder."""
    contents = {
        "a.npz": b"PK\3\4",
        "b.png": b"\x89PNG\r\n",
        "c.py": b"get_config = 3",
        "d.json": b"{",
    }
    contents |= {"e.pth": draw.randbytes(300), "f.npy": b"\x93NUMPY\1\0", "g": b"", "h.txt": b"x"}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [str(folder), *(str(folder / name) for name in contents), str(folder / "missing.npz")]


def tried(count: int, seed: int = 0) -> str:
    """Return what became of the command lines."""
    (line,) = RESULTS.lines(count=count, seed=seed)
    faults = [f"{number} {kind}" for kind, number in line["faults"].items()]
    return f"{count:,} command lines: {', '.join(faults) or 'no fault'}"


def main() -> None:
    from main import MODES  # here, as forked processes define its flags themselves

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    draw = random.Random(given.seed)
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), draw)
        commands = [command(draw, files, list(MODES)) for _ in range(given.count)]
        with ThreadPoolExecutor(given.workers) as pool:
            faults = list(pool.map(lambda arguments: fault(arguments, folder), commands))
    for arguments, found in zip(commands, faults, strict=True):
        if found:
            print(f"{found}\n    {' '.join(map(repr, arguments))}")
    kinds = Counter(found.partition(":")[0] for found in faults if found)
    RESULTS.put({"count": given.count, "seed": given.seed, "faults": kinds})
    print(tried(given.count, given.seed))
    sys.exit(bool(kinds))


if __name__ == "__main__":
    main()
