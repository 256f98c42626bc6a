"""Score-based generative modelling through SDEs: train, evaluate and sample from the command line.

    python main.py --config=configs/vp_digits.py --mode=train

Any field of the configuration can be overridden: --config.optim.lr=1e-4.
"""

import contextlib
import os
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

_MODES = (
    "train",
    "eval",
    "sample",
    "check",
    "prepare",
    "train_classifier",
    "stats",
    "compare",
    "moments",
    "import",
    "export",
)
_CONFIG = config_flags.DEFINE_config_file("config", None, "Configuration file.", lock_config=True)
_MODE = flags.DEFINE_enum("mode", None, _MODES, "What to do.", required=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; by default runs/<config name>.")
_CHECKPOINT = flags.DEFINE_integer(
    "checkpoint", None, "sample, moments, export: step; by default the latest."
)
_SOURCE = flags.DEFINE_string("source", None, "import: a published checkpoint, file or folder.")
_ATTENTION_ORDER = flags.DEFINE_enum(
    "attention_order",
    "legacy",
    ("legacy", "new"),
    "import: how a file of OpenAI sorts query, key and value; new for 64x64_diffusion.pt.",
)
_TARGET = flags.DEFINE_string(
    "target", None, "export: the file to write, for score_sde_pytorch. stats: the .npz to write."
)
_NUM_SAMPLES = flags.DEFINE_integer("num_samples", 64, "sample: number of images.")
_GIF = flags.DEFINE_boolean("gif", False, "sample: also animate the reverse process.")
_CACHE = flags.DEFINE_boolean(
    "compilation_cache", True, "Keep compiled programs in the user's cache directory."
)


def main(arguments: list[str]) -> None:
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # JAX tells of each accelerator that is not there
    try:
        _main(arguments[1:])
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last save", file=sys.stderr)
        sys.exit(130)


def _main(files: list[str]) -> None:
    # After the flags: a misspelt flag should not wait for JAX to load.
    import jax

    import run_lib
    from errors import ScoreSDEError

    if _CACHE.value:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scoresde"
        jax.config.update("jax_compilation_cache_dir", str(cache / "compiled"))
    try:
        _run(run_lib, files)
    except ScoreSDEError as error:
        sys.exit(f"error: {error}")
    except OSError as error:  # a full disk, a folder that may not be written
        sys.exit(f"error: {error}; mend this and run the same command again")


# Flags of some modes alone.
_OF_MODES = {
    "checkpoint": ("sample", "moments", "export"),
    "source": ("import",),
    "attention_order": ("import",),
    "target": ("stats", "export"),
    "num_samples": ("sample",),
    "gif": ("sample",),
}


def _check_mode() -> None:
    """Exit with the remedy if a flag was given that the mode has no use for."""
    for name, modes in _OF_MODES.items():
        if flags.FLAGS[name].present and _MODE.value not in modes:
            instead = ""
            if (name, _MODE.value) == ("checkpoint", "eval"):
                instead = "; give --config.eval.checkpoints='(STEP,)'"
            sys.exit(
                f"error: --{name} is of --mode={', '.join(modes)}, not of {_MODE.value}{instead}"
            )


def _run(run_lib: ModuleType, files: list[str]) -> None:
    if _MODE.value == "compare":
        run_lib.compare([Path(file) for file in files])
        return
    _check_mode()
    if files:
        sys.exit(f"error: {' '.join(files)}: not expected here; flags start with --")
    config = _CONFIG.value
    explicit = frozenset(config_flags.get_override_values(flags.FLAGS["config"]))
    # configs/vp_cifar10.py:ddpm is at home in runs/vp_cifar10_ddpm.
    file, _, variant = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")
    path = Path(_WORKDIR.value or Path("runs") / "_".join(filter(None, [Path(file).stem, variant])))
    match _MODE.value:
        case "train":
            run_lib.train(config, path, explicit=explicit)
        case "eval":
            run_lib.evaluate(config, path, explicit=explicit)
        case "sample":
            run_lib.sample(
                config,
                path,
                count=_NUM_SAMPLES.value,
                checkpoint=_CHECKPOINT.value,
                gif=_GIF.value,
                explicit=explicit,
            )
        case "check":
            run_lib.check(config, explicit=explicit)
        case "prepare":
            run_lib.prepare(config)
        case "train_classifier":
            run_lib.train_classifier(config, path, explicit=explicit)
        case "stats":
            target = Path(_TARGET.value) if _TARGET.value else None
            run_lib.stats(config, path, target=target, explicit=explicit)
        case "moments":
            run_lib.moments(config, path, checkpoint=_CHECKPOINT.value, explicit=explicit)
        case "import":
            run_lib.import_checkpoint(
                config,
                path,
                Path(_required(_SOURCE)),
                attention_order=_ATTENTION_ORDER.value,
                explicit=explicit,
                known=_known_configs(),
            )
        case "export":
            run_lib.export_checkpoint(
                config,
                path,
                Path(_required(_TARGET)),
                checkpoint=_CHECKPOINT.value,
                explicit=explicit,
            )


def _required(flag: flags.FlagHolder[str | None]) -> str:
    if not flag.value:
        sys.exit(f"error: --mode={_MODE.value} needs --{flag.name}=FILE")
    return flag.value


def _known_configs() -> Iterator[tuple[str, ConfigDict]]:
    """What --config can be: every configuration file that loads, with each of its variants."""
    for file in sorted(map(str, Path("configs").glob("[a-z]*_*.py"))):
        with contextlib.suppress(Exception):  # somebody's own file may raise anything
            module = runpy.run_path(file)
            for variant in module.get("VARIANTS", ("",)):
                config = module["get_config"](*filter(None, [variant]))
                yield ":".join(filter(None, [file, variant])), config


def _parse(argv: list[str]) -> list[str]:
    """Parse the flags; whatever is wrong with them is one line on stderr."""
    given = _given(argv[1:])
    if not any(name.startswith("help") for name in given) and given.get("mode") != "compare":
        config = _load(given.get("config", ""))
        for name in given:
            if name.startswith("config."):
                _check_field(name, config)
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")


def _given(arguments: list[str]) -> dict[str, str]:
    """What --name=value and --name value give, by name; a bare --name gives ""."""
    given = {}
    for argument, following in zip(arguments, [*arguments[1:], "-"], strict=True):
        if argument.startswith("-"):
            name, equals, value = argument.lstrip("-").partition("=")
            given[name] = value if equals or following.startswith("-") else following
    return given


def _load(given: str) -> ConfigDict:
    """The configuration of a file, or of file:argument."""
    file, _, argument = given.partition(":")
    if not Path(file).is_file():
        known = sorted(map(str, Path("configs").glob("[a-z]*_*.py")))
        sys.exit(f"error: --config={file!r} is not a file; give one such as: {', '.join(known)}")
    try:
        config = runpy.run_path(file)["get_config"](*filter(None, [argument]))
        if not isinstance(config, ConfigDict):
            raise TypeError(f"get_config() must return a ConfigDict, not {config!r:.40}")
        return config
    except Exception as error:  # it is a program, and may raise anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        sys.exit(f"error: --config={file!r} cannot be loaded: {reason}")


def _check_field(name: str, config: ConfigDict) -> None:
    """Exit with the valid names if `config.a.b` is not a field of the configuration."""
    node, path = config, "config"
    for part in name.split(".")[1:]:
        if not isinstance(node, ConfigDict) or part not in node:
            fields = ", ".join(node) if isinstance(node, ConfigDict) else "none, it is a value"
            sys.exit(f"error: --{name} is not a field; those of {path} are: {fields}")
        node, path = node[part], f"{path}.{part}"


if __name__ == "__main__":
    app.run(main, flags_parser=_parse)
