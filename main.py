"""Train, evaluate and sample score-based generative models from the command line.

    python main.py --config=configs/vp_digits.py --mode=train

Every field of the configuration can be overridden: --config.optim.lr=1e-4.
"""

import contextlib
import os
import signal
import sys
from types import FrameType


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted before anything was done\n")
    os._exit(128 + number)


if __name__ == "__main__":
    # The imports take seconds, and a library may lose the exception of Ctrl-C, or crash of it.
    signal.signal(signal.SIGINT, _leave)

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags


class Mode(NamedTuple):
    """A function of run_lib, and the flags that only some modes take."""

    function: str
    flags: tuple[str, ...] = ()
    required: tuple[str, ...] = ()


MODES = {
    "train": Mode("train", flags=("profile", "init_from")),
    "eval": Mode("evaluate", flags=("ema",)),
    "sample": Mode("sample", flags=("num_samples", "checkpoint", "ema", "gif", "png")),
    "demo": Mode("demo", flags=("checkpoint", "ema", "port")),
    "check": Mode("check", flags=("num_samples", "compile", "init_from")),
    "prepare": Mode("prepare", flags=("target", "skip_damaged")),
    "train_classifier": Mode("train_classifier"),
    "train_dequantizer": Mode("train_dequantizer"),
    "train_variance": Mode("train_variance", flags=("checkpoint", "ema")),
    "train_perceptor": Mode("train_perceptor"),
    "train_bridge": Mode("train_bridge", flags=("rounds",)),
    "stats": Mode("stats", flags=("target",)),
    "compare": Mode("compare"),
    "moments": Mode("moments", flags=("checkpoint", "ema")),
    "ema": Mode("reconstruct_averages", flags=("length", "checkpoint"), required=("length",)),
    "import": Mode("import_checkpoint", flags=("source", "attention_order"), required=("source",)),
    "import_classifier": Mode(
        "import_classifier", flags=("source", "attention_order"), required=("source",)
    ),
    "compress": Mode(
        "compress",
        flags=("source", "target", "lanes", "checkpoint", "ema"),
        required=("source", "target"),
    ),
    "decompress": Mode(
        "decompress",
        flags=("source", "target", "preview", "checkpoint", "ema"),
        required=("source", "target"),
    ),
    "export": Mode("export_checkpoint", flags=("target", "checkpoint"), required=("target",)),
}

_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
_MODE = flags.DEFINE_enum("mode", None, list(MODES), "What to do.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/<config name>.")
_CACHE = flags.DEFINE_boolean(
    "compilation_cache", True, "Keep compiled programs in the user's cache folder."
)
flags.DEFINE_integer(
    "checkpoint",
    None,
    "sample, demo, moments, train_variance, ema, export, compress, decompress: step; by default "
    "the latest.",
)
flags.DEFINE_string(
    "ema",
    "",
    "sample, demo, eval, moments, train_variance, compress, decompress: another average of the "
    "parameters, such as rate_0.999 or length_0.08.",
)
flags.DEFINE_string(
    "length", None, "ema: sigma_rel of the average to make; several, 0.05,0.1, are evaluated too."
)
flags.DEFINE_string(
    "source",
    None,
    "import, import_classifier: a published file or folder. import: digits, mnist or "
    "mnist_likelihood, networks that come along. compress: images, as "
    "config.task.input. decompress: the file of compress.",
)
flags.DEFINE_enum(
    "attention_order",
    "legacy",
    ["legacy", "new"],
    "import, import_classifier: how a file of OpenAI orders query, key and value; new for "
    "64x64_diffusion.pt alone.",
)
flags.DEFINE_string(
    "target",
    None,
    "export: the .pth to write. stats, decompress: the .npz to write. compress: the file to write. "
    "prepare: the folder to write images to.",
)
flags.DEFINE_boolean("skip_damaged", False, "prepare: leave out images that cannot be read.")
flags.DEFINE_string(
    "profile", None, "train: steps FIRST:LAST to trace with jax.profiler, into WORKDIR/profile."
)
flags.DEFINE_string(
    "init_from", "", "train, check: RUN or RUN:STEP to start from, as config.training.init_from."
)
flags.DEFINE_string("coordinator", "", "HOST:PORT of the first of several hosts.")
flags.DEFINE_integer("num_processes", None, "Number of hosts; by default they are detected.")
flags.DEFINE_integer("process_id", None, "Number of this host, from 0.")
flags.DEFINE_float("hosts_timeout", 300.0, "Seconds in which all hosts must have started.")
flags.DEFINE_integer("num_samples", 64, "sample, check: number of images.")
flags.DEFINE_boolean(
    "compile", False, "check: also compile, for FLOP, memory, and the accelerators it fits."
)
flags.DEFINE_integer("lanes", 4, "compress: number of images that are coded side by side.")
flags.DEFINE_integer("rounds", 6, "train_bridge: rounds, each on the pairs of the one before.")
flags.DEFINE_boolean("preview", False, "decompress: take a file that is cut short.")
_GIF = flags.Flag(
    flags.EnumParser(["true", "false", "x0"]),
    flags.ArgumentSerializer(),
    "gif",
    "false",
    "sample: also animate the reverse process; --gif=x0 shows the predicted x0 beside it.",
)
_GIF.boolean = True  # --gif and --nogif are valid
flags.DEFINE_flag(_GIF)
flags.DEFINE_integer("port", 8000, "demo: port of the page; 0 for a free one.", 0, 65535)
flags.DEFINE_boolean("png", False, "sample: also write each image as a PNG.")

_NUMBERS = ("num_processes", "process_id")  # of a host
_CLUSTERS = {"SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE"}  # variables of the tasks of one
_SMALLER = "lower the batch size, or set config.model.remat=True"


def main(arguments: list[str]) -> None:
    """Run the mode that the flags choose; exit with one line for a user's error."""
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # JAX reports each accelerator that is missing
    from errors import ScoreSDEError

    try:
        _run(MODES[_MODE.value], arguments[1:])
    except KeyboardInterrupt:
        print("interrupted; rerun the command to continue from the last save", file=sys.stderr)
        sys.exit(130)
    except ScoreSDEError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a full disk, a folder that may not be written
        sys.exit(f"error: {error}. Fix this and rerun")
    except MemoryError as error:
        sys.exit(f"error: out of memory ({error}); {_SMALLER}")
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):  # of a device
            raise
        sys.exit(f"error: out of memory ({str(error).splitlines()[0]}); {_SMALLER}")


def _run(mode: Mode, files: list[str]) -> None:
    from numerics.memory import share_heap

    share_heap()
    import jax

    import run_lib
    from files.cache import cache_folder, replace_unreadable_programs
    from files.paths import as_path
    from training.hosts import together
    from training.joining import HostOptions

    signal.signal(signal.SIGINT, signal.default_int_handler)  # from now on, modes clean up
    if _CACHE.value:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(cache_folder() / "compiled")
        jax.config.update("jax_compilation_cache_dir", folder)
        replace_unreadable_programs(Path(folder))
        # By default only programs that take over a second; there are a hundred shorter ones.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if _MODE.value == "compare":
        run_lib.compare([as_path(file) for file in files])
        return
    where: dict[str, Any] = {n: flags.FLAGS[n].value for n in ("coordinator", *_NUMBERS)}
    where["timeout"] = flags.FLAGS["hosts_timeout"].value
    with together(HostOptions(**where)):
        _run_mode(mode)


def _run_mode(mode: Mode) -> None:
    import jax

    import run_lib
    from evaluation.metrics import check_options
    from experiment.build import build
    from files.nested import flatten
    from files.paths import in_bucket
    from jobs.workdir import Workdir
    from training.hosts import require_same

    config, overrides = _configuration()
    experiment = build(config, overrides=overrides)
    check_options(experiment.evaluation, experiment.data.kind)
    options, workdir = _mode_flags(mode), _workdir()
    given = {f"--{name}": str(value) for name, value in options.items()}
    place = workdir if in_bucket(workdir) else str(Path(workdir).absolute())
    given |= {"--mode": _MODE.value, "--workdir": place}
    given |= {"jax": jax.__version__, "devices of a host": jax.local_device_count()}
    fields = {f"config.{name}": value for name, value in flatten(experiment.config, ".").items()}
    require_same("the command", given | fields)
    getattr(run_lib, mode.function)(experiment, Workdir(workdir), **options)


def _mode_flags(mode: Mode) -> dict[str, Any]:
    """Return the values of the mode's own flags; exit for a flag that it does not take."""
    from files.paths import as_path

    for name in sorted({name for other in MODES.values() for name in other.flags}):
        if flags.FLAGS[name].present and name not in mode.flags:
            takers = ", ".join(taker for taker, other in MODES.items() if name in other.flags)
            remedy = ""
            if (name, _MODE.value) == ("checkpoint", "eval"):
                remedy = "; give --config.eval.checkpoints='(STEP,)'"
            sys.exit(
                f"error: --{name} is only valid with --mode={takers}, not {_MODE.value}{remedy}"
            )
    values = {name: flags.FLAGS[name].value for name in mode.flags}
    for name in mode.required:
        if not values[name]:
            value = {"length": "0.08"}.get(name, "FILE")
            sys.exit(f"error: --mode={_MODE.value} needs --{name}={value}")
    values.pop("init_from", None)  # `_configuration` has it
    paths = ("source", "target")
    return {name: as_path(v) if name in paths and v else v for name, v in values.items()}


def _configuration() -> tuple[ConfigDict, frozenset[str]]:
    """Return the configuration, and the names of the fields that the command line sets."""
    config, unset = _CONFIG.value, [field for field in map(_unset_field, sys.argv) if field]
    for field in unset:
        section, _, name = field.rpartition(".")
        config[section][name] = None
    given = config_flags.get_override_values(flags.FLAGS["config"])
    if run := flags.FLAGS["init_from"].value:
        if "training.init_from" in given:
            sys.exit("error: give --init_from or --config.training.init_from, not both")
        config.training.init_from, given = run, {*given, "training.init_from"}
    return config, frozenset((*given, *unset))


def _workdir() -> str:
    """Return --workdir; by default configs/vp_cifar10.py:ddpm goes to runs/vp_cifar10_ddpm."""
    file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    name = "_".join(filter(None, [Path(file).stem, variant]))
    return _WORKDIR.value or str(Path("runs") / name)


def _parse(argv: Sequence[str]) -> list[str]:
    """Parse and check the flags; whatever is wrong with them is one line on stderr.

    This needs no JAX, for which a misspelled flag should not wait.
    """
    try:
        program, *files = _parsed(argv)
        if files and _MODE.value != "compare":
            sys.exit(f"error: {' '.join(files)}: not expected here; flags start with --")
        _mode_flags(MODES[_MODE.value])
        return [program, *files]
    except SystemExit as end:
        if isinstance(end.code, str):
            _end_other_hosts(end.code)
        raise


def _end_other_hosts(reason: str) -> None:
    """End this host and those that wait for it for a reason; return if there are no others."""
    given = _given(sys.argv[1:])
    if "coordinator" not in given and not _CLUSTERS & os.environ.keys():
        return
    print(reason, file=sys.stderr, flush=True)  # now, since the others may come late
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # another host may fail for the same reason
    from errors import HostsError
    from training.hosts import together
    from training.joining import HostOptions

    # The flags that are wrong may be these, and the others may not come.
    with contextlib.suppress(HostsError, OSError, RuntimeError, SystemExit, ValueError):
        where: dict[str, Any] = {n: int(given[n]) for n in _NUMBERS if n in given}
        if "hosts_timeout" in given:
            where["timeout"] = float(given["hosts_timeout"])
        with together(HostOptions(coordinator=given.get("coordinator", ""), **where)):
            sys.exit(reason)
    sys.exit(1)


def _parsed(argv: Sequence[str]) -> list[str]:
    """Return the program and the arguments that are no flags."""
    from errors import ConfigError
    from experiment.configurations import load_configuration

    argv = [_found(argument) for argument in argv]
    given = _given(argv[1:])
    helps = any(name.startswith("help") for name in given)
    if not helps and not given.get("config") and given.get("mode") != "compare":
        sys.exit(
            "error: give a configuration and a mode, such as python main.py "
            f"--config=configs/vp_digits.py --mode=train; modes are: {', '.join(MODES)}"
        )
    try:
        if not helps and given.get("mode") != "compare":
            config = load_configuration(given["config"])
            for name, value in given.items():
                if name.startswith("config."):
                    _check_field(name, value, config)
            # absl would take None for a number or a text; `_configuration` unsets these fields.
            argv = [argument for argument in argv if not _unset_field(argument)]
        return flags.FLAGS(argv)
    except ConfigError as error:
        sys.exit(f"error: {error}")
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def _found(argument: str) -> str:
    """Return the argument, with the full path of a configuration that only the project has."""
    from experiment.configurations import PROJECT

    match = re.fullmatch(r"(--?config=|)(configs/\w+\.py)(:.*|)", argument)
    if match and not os.path.exists(match[2]) and os.path.exists(PROJECT / match[2]):
        return f"{match[1]}{PROJECT / match[2]}{match[3]}"
    return argument


def _given(arguments: list[str]) -> dict[str, str]:
    """Return what --name=value and --name value give, by name; a bare --name gives ""."""
    given = {}
    for argument, following in zip(arguments, [*arguments, "-"][1:], strict=True):
        if argument.startswith("-"):
            name, equals, value = argument.lstrip("-").partition("=")
            given[name] = value if equals or following.startswith("-") else following
    return given


def _unset_field(argument: str) -> str:
    """Return the field a.b that --config.a.b=None unsets; "" for any other argument."""
    name, _, value = argument.lstrip("-").partition("=")
    return name.removeprefix("config.") if (name[:7], value) == ("config.", "None") else ""


def _check_field(name: str, value: str, config: ConfigDict) -> None:
    """Exit with what is valid if `config.a.b` is no field, or is a section, or cannot be unset."""
    from experiment.configurations import default_configuration

    node, path = config, "config"
    for part in name.split(".")[1:]:
        if not isinstance(node, ConfigDict) or part not in node:
            fields = ", ".join(node) if isinstance(node, ConfigDict) else "none, it is a value"
            sys.exit(f"error: --{name} is not a field; the fields of {path} are: {fields}")
        node, path = node[part], f"{path}.{part}"
    if isinstance(node, ConfigDict):
        first = "name" if "name" in node else next(iter(node))
        sys.exit(
            f"error: --{name} is a section; set its fields, such as --{name}.{first}={value}. They "
            f"are: {', '.join(node)}"
        )
    if value == "None":
        default = default_configuration()
        for part in name.split(".")[1:]:
            default = default.get(part) if isinstance(default, dict) else 0
        if default is not None:
            sys.exit(f"error: --{name}=None: it must have a value; its default is {default!r}")


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
